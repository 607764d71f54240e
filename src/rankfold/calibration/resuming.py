"""Forward passes that resume where an earlier pass over the same batch reached a layer.

Sequential reconstruction runs two networks up to one layer after the other. Each pass keeps the outputs of finished
modules (`rankfold.calibration.replay`), from which the pass for the next layer starts. Only those that the rest of the
pass can use are kept; the others are replaced by zeros that take no memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import copied, detached, map_tensors, tensors_of
from rankfold.calibration.replay import Memory, wrapped_forwards
from rankfold.inventory.dispatching import DispatchMode

KEPT_BYTES = 2**29
"""Bytes of activations that are kept, of both networks and all batches together. A batch whose activations before a
layer do not fit resumes at an earlier layer."""

_READ = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True, slots=True)
class _Point:
    """Where the passes over one batch resume."""

    content: str
    memory: Memory
    size: int


class Resuming:
    """The points at which the forward passes of several networks over several batches resume.

    Parameters
    ----------
    most : int
        Bytes of activations to keep.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._room = most
        self._points: dict[tuple[str, int], _Point] = {}
        self._stopped = False

    def stop(self) -> bool:
        """Start all further passes at the inputs; return False if they do already."""
        started, self._stopped = not self._stopped, True
        self._points.clear()
        return started

    @contextmanager
    def resumed(
        self,
        model: nn.Module,
        key: tuple[str, int],
        content: str | None,
        layers: Collection[nn.Module],
        unsettled: Iterable[nn.Module],
    ) -> Iterator[None]:
        """Resume the forward pass inside the block at the last point, and keep the activations before some layers.

        Parameters
        ----------
        model : Module
            The network, with hooks on nothing that runs before the layers of the last point.
        key : (str, int)
            The network and the number of the batch.
        content : str or None
            The hash of the batch's inputs. If it is not that of the last point, or unknown, the pass starts at the
            inputs.
        layers : collection of Module
            The next passes resume before the first call of one of these.
        unsettled : iterable of Module
            Modules that may change before the next pass, and so must run in it.
        """
        point = self._points.get(key)
        if point is not None and point.content != content:
            self._drop(key)
            point = None
        if content is None or self._stopped:
            yield
            return
        recorder = _Recorder(model, {} if point is None else point.memory, set(unsettled))
        handles = [layer.register_forward_pre_hook(recorder.reach, prepend=True) for layer in layers]
        try:
            with wrapped_forwards(model, recorder.wrap), recorder.origins:
                yield
        finally:
            for handle in handles:
                handle.remove()
            if recorder.memory is not None:
                self._keep(key, content, recorder.memory)

    def _keep(self, key: tuple[str, int], content: str, memory: Memory) -> None:
        size = sum(t.untyped_storage().nbytes() for outputs in memory.values() for t in tensors_of(outputs))
        point = self._points.get(key)
        room = self._room + (0 if point is None else point.size)
        if size <= room:
            self._points[key] = _Point(content, memory, size)
            self._room = room - size

    def _drop(self, key: tuple[str, int]) -> None:
        point = self._points.pop(key, None)
        self._room += 0 if point is None else point.size


@dataclass(slots=True, eq=False)
class _Output:
    """The output of one call of a module."""

    module: nn.Module
    value: Any


class _Recorder:
    """Answers calls from a memory, and records what finishes before a layer is reached."""

    def __init__(self, model: nn.Module, memory: Memory, unsettled: Collection[nn.Module]) -> None:
        self.origins = _Origins()
        self.memory: Memory | None = None  # once a layer is reached
        self._answers = {module: iter(outputs) for module, outputs in memory.items()}
        self._around = _around(model, unsettled)
        self._finished: list[_Output] = []

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        answers, missing = self._answers.get(module, iter(())), object()

        def call(*args: Any, **kwargs: Any) -> Any:
            start = len(self._finished)
            kept = next(answers, missing)
            if kept is not missing:
                with self.origins.ignored():
                    output = copied(kept)
            else:
                output = forward(*args, **kwargs)
            if self.memory is None and module not in self._around:
                if kept is missing:
                    with self.origins.ignored():
                        kept = copied(detached(output))
                record = _Output(module, kept)
                self._finished[start:] = [record]
                self.origins.set(output, record, given=(args, kwargs))
            return output

        return call

    def reach(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        """Keep what the rest of the pass can use."""
        if self.memory is not None:
            return
        used = self.origins.used()
        memory: dict[nn.Module, list[Any]] = defaultdict(list)
        with self.origins.ignored():
            for output in self._finished:
                value = output.value if output in used else map_tensors(_placeholder, output.value)
                memory[output.module].append(value)
        self.memory = memory
        self.origins.ends()
        self._finished.clear()


def _around(model: nn.Module, parts: Collection[nn.Module]) -> set[nn.Module]:
    """Return some modules of a model and all that contain one of them."""
    contained: dict[nn.Module, bool] = {}

    def contains(module: nn.Module) -> bool:
        if module not in contained:
            contained[module] = module in parts
            inside = [contains(child) for child in module.children()]
            contained[module] |= any(inside)
        return contained[module]

    contains(model)
    return {module for module, inside in contained.items() if inside}


def _placeholder(tensor: Tensor) -> Tensor:
    """Return zeros of a tensor's shape that take the memory of one element."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() > 1
    return tensor.new_zeros(()).expand(tensor.shape) if plain else tensor


class _Origins(DispatchMode):
    """Follows recorded outputs through the operations between modules, which every pass repeats.

    An output is used later if a tensor computed from it still exists when a layer is reached, or if control flow
    depended on its values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of: Any = WeakIdKeyDictionary()  # tensor -> the recorded outputs that it was computed from
        self._read: set[_Output] = set()
        self._idle = False

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Do not follow the operations inside the block."""
        before, self._idle = self._idle, True
        try:
            yield
        finally:
            self._idle = before

    def ends(self) -> None:
        """Stop following."""
        self._idle = True
        self._of.clear()

    def set(self, output: Any, record: _Output, given: Any) -> None:
        """Note that tensors are the recorded output of a module, and nothing else unless they were given to it."""
        arguments = {id(t) for t in tensors_of(given)}
        for tensor in tensors_of(output):
            earlier = self._of.get(tensor, frozenset()) if id(tensor) in arguments else frozenset()
            self._of[tensor] = earlier | {record}

    def used(self) -> set[_Output]:
        """Return the recorded outputs that may be used later."""
        return self._read.union(*self._of.values())

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and note what its results were computed from."""
        del types
        result = func(*args, **kwargs)
        if self._idle:
            return result
        given = tensors_of([*args, *kwargs.values()])
        origins = frozenset[_Output]().union(*(self._of.get(tensor, ()) for tensor in given))
        if not origins:
            return result
        if any(tag in _READ for tag in getattr(func, "tags", ())):
            self._read |= origins
        for tensor in tensors_of(result):
            if tensor._is_view() and any(tensor is t for t in given):  # written to: others see it through its base
                self._read |= origins
            self._of[tensor] = self._of.get(tensor, frozenset()) | origins
        return result
