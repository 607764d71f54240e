"""Record how a model uses its layers in a forward pass: hooks see calls, a dispatch mode sees reads of weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._tensors import tensors_of
from rankfold.inventory.dispatching import DispatchMode
from rankfold.inventory.members import Member
from rankfold.inventory.sharing import labeled_ranges, overlapping, storage_pointer
from rankfold.inventory.static import Entry, weight_memory
from rankfold.records import Call, LayerInfo

_Sizes = tuple[int, tuple[int, ...], tuple[int, ...]]


class Usage:
    """Uses of each entry (`static.Entry`), by its position in `entries`.

    Attributes
    ----------
    sequence : list of int
        The calls, in order of execution.
    used_elsewhere : set of int
        Entries whose weight was read outside of their calls.
    with_output_size : set of int
        Transposed convolutions that were called with ``output_size``.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.clear()

    def clear(self) -> None:
        """Discard everything that was recorded."""
        self._sizes: dict[int, Counter[_Sizes]] = defaultdict(Counter)
        self.sequence: list[int] = []
        self.used_elsewhere: set[int] = set()
        self.with_output_size: set[int] = set()
        self._inside: Counter[int] = Counter()

    def calls(self, entry: int) -> tuple[Call, ...]:
        """Return the calls of an entry, those of equal sizes merged."""
        return tuple(
            Call(batch=batch, in_size=inside, out_size=outside, count=count)
            for (batch, inside, outside), count in self._sizes[entry].items()
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the forward passes inside the block."""
        by_module: dict[nn.Module, list[tuple[int, Member]]] = defaultdict(list)
        for i, entry in enumerate(self.entries):
            for member in entry.members:
                by_module[member.module].append((i, member))
        with ExitStack() as stack:
            for module, members in by_module.items():
                # Registered first, so that other hooks do not change the arguments and results seen here, and reads by
                # pre-hooks that compute the weight count as the layer's own.
                before = module.register_forward_pre_hook(self._enter([i for i, _ in members]), prepend=True)
                after = module.register_forward_hook(self._leave(members), prepend=True, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(MemoryWatch(weight_memory(self.entries), self._read))
            yield

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
                if member.info.transposed and _argument(args, kwargs, 1, "output_size") is not None:
                    self.with_output_size.add(i)

        return hook

    def _read(self, entry: int) -> None:
        if not self._inside[entry]:
            self.used_elsewhere.add(entry)


def _sizes(member: Member, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> _Sizes | None:
    info = member.info
    if member.role is not None:
        names = {"k_proj": (1, "key"), "v_proj": (2, "value")}
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


class MemoryWatch(DispatchMode):
    """Call `touched` with a tensor's label whenever an operation reads its memory: all of it, a part, or a view."""

    def __init__(self, tensors: Iterable[tuple[Tensor, Any]], touched: Callable[[Any], object]) -> None:
        super().__init__()
        self._touched = touched
        self._watching = True
        self._ranges = labeled_ranges(tensors)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Report nothing inside the block."""
        self._watching = False
        try:
            yield
        finally:
            self._watching = True

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and report the watched tensors that it reads."""
        del types
        # Creating a view reads nothing; operations that read the view are seen by its memory. A model that
        # differentiates in its forward also reads weights in the backward pass, which is the layer's own use.
        node: Any = torch._C._current_autograd_node()
        if self._watching and node is None and not getattr(func, "is_view", False):
            for tensor in tensors_of((args, kwargs)):
                if ranges := self._ranges.get(storage_pointer(tensor)):
                    for _, _, label in overlapping(ranges, tensor):
                        self._touched(label)
        return func(*args, **kwargs)
