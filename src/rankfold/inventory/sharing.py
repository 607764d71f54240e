"""Parameters that share memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor, nn

from rankfold.inventory.kinds import is_lazy

Range = tuple[int, int, Any]
"""First byte and end of a tensor in its memory, and its label."""


def tensor_key(tensor: Tensor, role: str | None = None) -> Hashable:
    """Return a key that two tensors share if they are views of the same elements.

    `role` names a part of a tensor, and tells parts apart where the tensor has no memory address.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        pointer = storage_pointer(tensor)
        if pointer:
            return (str(tensor.device), pointer, tensor.storage_offset(), tensor.numel())
    return ("object", id(tensor), role)


def storage_pointer(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 if it has none (meta, sparse, fake, empty)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors that are not lazy, the first of those that share memory."""
    seen: dict[Hashable, Tensor] = {}
    for tensor in tensors:
        if not is_lazy(tensor):
            seen.setdefault(tensor_key(tensor), tensor)
    return list(seen.values())


def memory_range(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte and the end of a tensor in its memory."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def labeled_ranges(tensors: Iterable[tuple[Tensor, Any]]) -> dict[int, list[Range]]:
    """Return the ranges of labeled tensors by the address of their memory."""
    ranges: dict[int, list[Range]] = defaultdict(list)
    for tensor, label in tensors:
        if pointer := storage_pointer(tensor):
            ranges[pointer].append((*memory_range(tensor), label))
    return ranges


def overlapping(ranges: Iterable[Range], tensor: Tensor) -> list[Range]:
    """Return the ranges that share bytes with a tensor in the same memory."""
    start, stop = memory_range(tensor)
    return [item for item in ranges if item[0] < stop and start < item[1]]
