"""How a model uses its layers in one forward pass: hooks for calls, a dispatch mode for weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankfold.inventory.members import Member
from rankfold.inventory.sharing import memory_range, storage_pointer
from rankfold.inventory.static import Entry
from rankfold.records import Call, LayerInfo

_Sizes = tuple[int, tuple[int, ...], tuple[int, ...]]


class Usage:
    """What was seen of each decision, by its position among the entries.

    Parameters
    ----------
    entries : sequence of Entry
        The decisions to watch.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.clear()

    def clear(self) -> None:
        """Forget everything, before another pass."""
        self._sizes: dict[int, Counter[_Sizes]] = defaultdict(Counter)
        self.sequence: list[int] = []
        self.used_elsewhere: set[int] = set()
        self.with_output_size: set[int] = set()
        self._inside: Counter[int] = Counter()

    def calls(self, entry: int) -> tuple[Call, ...]:
        """Return the calls of one decision, equal sizes merged."""
        return tuple(
            Call(batch=batch, in_size=inside, out_size=outside, count=count)
            for (batch, inside, outside), count in self._sizes[entry].items()
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every forward pass inside; the hooks are gone afterwards."""
        by_module: dict[nn.Module, list[tuple[int, Member]]] = defaultdict(list)
        for i, entry in enumerate(self.entries):
            for member in entry.members:
                by_module[member.module].append((i, member))
        handles = []
        try:
            for module, members in by_module.items():
                # First in line: the layer's own arguments and result, whatever other hooks do, and
                # weights that a pre-hook computes count as used inside.
                before = module.register_forward_pre_hook(self._enter([i for i, _ in members]), prepend=True)
                after = module.register_forward_hook(self._leave(members), prepend=True, with_kwargs=True)
                handles += [before, after]
            with MemoryWatch(_weights(self.entries), self.touched):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, entries: list[int]) -> Any:
        def hook(module: nn.Module, args: Any) -> None:  # noqa: ARG001
            self._inside.update(entries)

        return hook

    def _leave(self, members: list[tuple[int, Member]]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            self._inside.subtract([i for i, _ in members])
            for i, member in members:
                sizes = _sizes(member, args, kwargs, output)
                if sizes is not None:
                    self._sizes[i][sizes] += 1
                self.sequence.append(i)
                sized = _argument(args, kwargs, 1, "output_size") is not None
                if sized and member.info.transposed:
                    self.with_output_size.add(i)

        return hook

    def touched(self, entry: int) -> None:
        """Note that an operation read a weight; what the layer itself does is no news."""
        if not self._inside[entry]:
            self.used_elsewhere.add(entry)


def _sizes(member: Member, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> _Sizes | None:
    info = member.info
    if member.role is not None:
        names = {"q_proj": (0, "query"), "k_proj": (1, "key"), "v_proj": (2, "value")}
        source = _argument(args, kwargs, *names.get(member.role, (0, "query")))
        return (_rows(source, info), (), ()) if isinstance(source, Tensor) else None
    source = _argument(args, kwargs, 0, "x" if info.input_first else "input")
    if not isinstance(source, Tensor) or not isinstance(output, Tensor):
        return None
    if info.kind == "linear":
        return (_rows(source, info), (), ())
    dims = len(info.kernel)
    batch = source.shape[0] if source.ndim == dims + 2 else 1
    return (batch, tuple(source.shape[-dims:]), tuple(output.shape[-dims:]))


def _rows(source: Tensor, info: LayerInfo) -> int:
    return source.numel() // max(1, info.in_channels)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


class MemoryWatch(TorchDispatchMode):
    """Reports every operation that reads watched memory, or a part of it, or a view of it.

    Parameters
    ----------
    tensors : iterable of (Tensor, object)
        What is watched, each with what it is called.
    touched : callable
        Is given the name of a tensor whenever an operation reads it.
    """

    def __init__(self, tensors: Iterable[tuple[Tensor, Any]], touched: Callable[[Any], object]) -> None:
        super().__init__()
        self._touched = touched
        self._watching = True
        self._ranges: dict[int, list[tuple[int, int, Any]]] = defaultdict(list)
        for tensor, name in tensors:
            if pointer := storage_pointer(tensor):
                self._ranges[pointer].append((*memory_range(tensor), name))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Report nothing inside."""
        self._watching = False
        try:
            yield
        finally:
            self._watching = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Making a view reads nothing; what then reads the view is seen by its memory.
        # A model that differentiates in its forward reads weights on the way back, too; that is the layer's own use.
        node: Any = torch._C._current_autograd_node()
        if self._watching and node is None and not getattr(func, "is_view", False):
            for tensor in _tensors((*args, *kwargs.values())):
                for low, high, name in self._ranges.get(storage_pointer(tensor), ()):
                    start, stop = memory_range(tensor)
                    if start < high and low < stop:
                        self._touched(name)
        return func(*args, **kwargs)


def _weights(entries: Sequence[Entry]) -> Iterator[tuple[Tensor, int]]:
    for i, entry in enumerate(entries):
        for member in entry.members:
            for tensor in member.stored if member.weight is None else (member.weight,):
                yield tensor, i


def _tensors(items: Iterable[Any]) -> Iterator[Tensor]:
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)
