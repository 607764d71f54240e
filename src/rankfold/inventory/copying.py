"""Copies of whole models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError
from rankfold.inventory.kinds import is_lazy
from rankfold.inventory.reach import base_container, is_record, reach
from rankfold.inventory.wrappers import require_module

_CUSTOM = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")


def copy_model(model: nn.Module, *, instead: str | None = None) -> nn.Module:
    """Return a deep copy, which can be trained wherever the model came from.

    Tensors that a module computed and keeps with their graph, in attributes, lists, dicts or objects at any depth, are
    copied without it. What cannot be copied (locks, files, sockets, thread pools, generators) is shared with the
    original. Tensors made in inference mode become ordinary ones.

    Parameters
    ----------
    model : Module
        Any model.
    instead : str, optional
        The function that works in place, for the message if there is no copy to be had.

    Raises
    ------
    ModelError
        If it is no model, or a module in it cannot be copied.
    """
    require_module(model)
    with torch.inference_mode(False):
        made = {id(value): twin for value in reach(model) if (twin := _tensor_by_hand(value)) is not None}
        try:
            return copy.deepcopy(model, dict(made))
        except Exception:  # a module's own __deepcopy__ or __reduce__ may raise anything
            made |= _shared(model, made)
        try:
            return copy.deepcopy(model, made)
        except Exception as error:
            advice = "Let its classes support copy.deepcopy"
            advice += "." if instead is None else f", or use {instead}, which works in place and needs no copy."
            raise ModelError(f"the model cannot be copied: {error}. {advice}") from error


def _shared(model: nn.Module, made: dict[int, Any]) -> dict[int, Any]:
    """Return what cannot be copied and is no module, by id: what is inside of others first."""
    shared: dict[int, Any] = {}
    for value in reversed(list(reach(model))):
        if isinstance(value, nn.Module | Tensor | tuple | frozenset) or base_container(value) or _is_plain(value):
            continue
        try:
            copy.deepcopy(value, made | shared)
        except Exception:  # whatever it raises
            shared[id(value)] = value
    return shared


def _is_plain(value: Any) -> bool:
    """Whether an object is copied attribute by attribute, each of which is looked at on its own."""
    own = (getattr(type(value), n, None) is not getattr(object, n, None) for n in _CUSTOM)
    return is_record(value) and not any(own)


def _tensor_by_hand(tensor: Any) -> Tensor | None:
    """Return a copy of a tensor that torch does not copy; None for anything else."""
    if not isinstance(tensor, Tensor):
        return None
    if is_lazy(tensor):
        if isinstance(tensor, nn.Parameter):
            return None
        cls: Any = type(tensor)
        return cls(device=tensor.device, dtype=tensor.dtype)
    if not tensor.is_leaf:
        return tensor.detach().clone()
    grad = None if isinstance(tensor, nn.Parameter) else tensor.grad
    if grad is not None and not grad.is_leaf:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return None
