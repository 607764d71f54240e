"""Forward passes that resume where an earlier pass over the same batch reached a layer.

Sequential reconstruction runs two networks up to one layer after the other. Each pass keeps the outputs of finished
modules (`rankfold.calibration.replay`), from which the pass for the next layer starts. Only those that the rest of the
pass can use are kept; the others are replaced by zeros that take no memory. A kept output shares its memory with the
network until an operation writes to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import copied, map_tensors, tensors_of
from rankfold.calibration.replay import wrapped_forwards
from rankfold.inventory.dispatching import DispatchMode
from rankfold.inventory.sharing import storage_pointer

KEPT_BYTES = 2**29
"""Bytes of activations that are kept, of both networks and all batches together. A batch whose activations before a
layer do not fit resumes at an earlier layer."""

_READ = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True, slots=True)
class _Point:
    """Where the passes over one batch resume."""

    content: str
    memory: _Memory
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
        unsettled: Collection[nn.Module],
    ) -> Iterator[Callable[[], None]]:
        """Resume the forward pass inside the block at the last point, and keep the activations of a later one.

        The new point is the first call of an unsettled module, or that of the yielded function, whichever is first.

        Parameters
        ----------
        model : Module
            The network, with hooks on nothing that runs before the layers of the last point.
        key : (str, int)
            The network and the number of the batch.
        content : str or None
            The hash of the batch's inputs. If it is not that of the last point, or unknown, the pass starts at the
            inputs.
        unsettled : collection of Module
            Modules that must run in the next pass: they may change before it, or have hooks in it.
        """
        point = self._points.get(key)
        if point is not None and point.content != content:
            self._drop(key)
            point = None
        if content is None or self._stopped:
            yield lambda: None
            return
        recorder = _Recorder(model, {} if point is None else point.memory, set(unsettled))

        def before(*_: Any) -> None:
            recorder.end()

        handles = [module.register_forward_pre_hook(before, prepend=True) for module in unsettled]
        try:
            with wrapped_forwards(model, recorder.wrap), recorder.origins:
                yield recorder.end
        finally:
            for handle in handles:
                handle.remove()
            if recorder.memory is not None:
                self._keep(key, content, recorder.memory)

    def _keep(self, key: tuple[str, int], content: str, memory: _Memory) -> None:
        kept = {storage_pointer(t): t for output in _outputs(memory) for t in tensors_of(output.value)}
        size = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer)
        point = self._points.get(key)
        room = self._room + (0 if point is None else point.size)
        if size <= room:
            self._points[key] = _Point(content, memory, size)
            self._room = room - size

    def _drop(self, key: tuple[str, int]) -> None:
        point = self._points.pop(key, None)
        self._room += 0 if point is None else point.size


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Output:
    """The output of one call of a module, which shares its storage with the network until it is written to."""

    value: Any


_Memory = Mapping[nn.Module, list[_Output]]
"""The outputs of the modules that finished before a point, call by call."""


def _outputs(memory: _Memory) -> Iterator[_Output]:
    """Yield all outputs of a memory."""
    return chain.from_iterable(memory.values())


class _Recorder:
    """Answers calls from a memory, and records what finishes until its end."""

    def __init__(self, model: nn.Module, memory: _Memory, unsettled: Collection[nn.Module]) -> None:
        self.origins = _Origins(model, memory)
        self.memory: _Memory | None = None  # once the recording has ended
        self._answers = {module: iter(outputs) for module, outputs in memory.items()}
        self._around = _around(model, unsettled)
        self._finished: list[tuple[nn.Module, _Output]] = []

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        answers = self._answers.get(module, iter(()))

        def call(*args: Any, **kwargs: Any) -> Any:
            start = len(self._finished)
            record = next(answers, None)
            if record is None:
                output = forward(*args, **kwargs)
            else:
                with self.origins.ignored():
                    output = self.origins.share(record)
            if self.memory is None and module not in self._around:
                if record is None:
                    record = _Output(output)
                    with self.origins.ignored():
                        record.value = self.origins.share(record)
                self._finished[start:] = [(module, record)]
                self.origins.set(output, record, given=(args, kwargs))
            return output

        return call

    def end(self) -> None:
        """End the recording, if it has not ended: keep what the rest of the pass can use."""
        if self.memory is not None:
            return
        used = self.origins.used()
        memory: dict[nn.Module, list[_Output]] = defaultdict(list)
        with self.origins.ignored():
            for module, output in self._finished:
                unused = output not in used
                memory[module].append(_Output(map_tensors(_placeholder, output.value)) if unused else output)
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


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary dense one, of which no two elements share memory."""
    dense = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
    return dense and 0 not in tensor.stride()


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes to; all that it is given if it does not say."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return tensors_of([*args, *kwargs.values()])
    if not schema.is_mutable:
        return []
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return tensors_of([given[name] for name in written if name in given])


class _Origins(DispatchMode):
    """Follows recorded outputs through the operations between modules, which every pass repeats.

    An output is used later if a tensor computed from it still exists when the recording ends, or if control flow
    depended on its values. An output that an operation writes to is copied before.
    """

    def __init__(self, model: nn.Module, memory: _Memory) -> None:
        super().__init__()
        self._sharing: dict[int, WeakSet[_Output]] = defaultdict(WeakSet)  # by storage
        for record in _outputs(memory):
            for tensor in tensors_of(record.value):
                self._sharing[storage_pointer(tensor)].add(record)
        tables = [table for m in model.modules() for table in (m._parameters, m._buffers)]
        self._own = {storage_pointer(t) for table in tables for t in table.values() if t is not None}
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

    def share(self, record: _Output) -> Any:
        """Return the value of a record in new tensors, which share its storage if every write to it will be seen."""

        def shared(tensor: Tensor) -> Tensor:
            storage = storage_pointer(tensor) if _is_plain(tensor) else 0
            if not storage or storage in self._own:  # the fit writes to parameters and buffers between passes
                return tensor.detach().clone()
            self._sharing[storage].add(record)
            return tensor.detach()

        return map_tensors(shared, record.value)

    def _separate(self, written: Iterable[Tensor]) -> None:
        """Copy the records that share their storages with tensors."""
        for tensor in written:
            for record in self._sharing.pop(storage_pointer(tensor), ()):
                record.value = copied(record.value)

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
        self._separate(_written(func, args, kwargs))
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
