"""Which parameters are the same memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from rankfold.inventory.kinds import is_lazy


def tensor_key(tensor: Tensor, role: str | None = None) -> Hashable:
    """Return a key that two tensors share if they are views of the same elements.

    Parameters
    ----------
    tensor : Tensor
        A parameter, a buffer, or a view of one.
    role : str or None
        Which part of `tensor` is meant, where it has no memory that could tell.
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
    """Return the tensors without those whose memory an earlier one has; without lazy ones."""
    seen: dict[Hashable, Tensor] = {}
    for tensor in tensors:
        if not is_lazy(tensor):
            seen.setdefault(tensor_key(tensor), tensor)
    return list(seen.values())


def persistent_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a state dictionary holds."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in getattr(module, "_non_persistent_buffers_set", ())
    ]


def stored_tensors(model: nn.Module) -> list[Tensor]:
    """Return all parameters and persistent buffers, shared ones once."""
    return unique([*model.parameters(), *persistent_buffers(model)])


def memory_range(tensor: Tensor) -> tuple[int, int]:
    """Return the bytes of its memory that a tensor spans."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def stored_params(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    with torch.no_grad():
        return sum(p.numel() for p in unique(model.parameters()))
