"""Copy whole models."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError
from rankfold.inventory.kinds import is_lazy
from rankfold.inventory.reach import base_container, is_record, reach
from rankfold.inventory.wrappers import require_module

_COPIED = (torch.strided, torch.sparse_coo)
"""Layouts that ``copy.deepcopy`` accepts."""
_CUSTOM = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")


def copy_model(model: nn.Module, *, instead: str | None = None, blank: Collection[nn.Parameter] = ()) -> nn.Module:
    """Return a trainable deep copy of any model.

    Tensors that a module computed and stored with their graph, in attributes, lists, dicts or objects at any depth, are
    copied without it. Objects that cannot be copied (locks, files, sockets, thread pools, generators) are shared with
    the original. Inference tensors become ordinary ones.

    Parameters
    ----------
    model : Module
        The model.
    instead : str, optional
        A function that works in place, which the error message recommends.
    blank : collection of Parameter
        Parameters that the caller replaces in the copy: their values are not copied, unless other tensors share them.

    Raises
    ------
    ModelError
        If `model` is not a module, or contains a module that cannot be copied.
    """
    require_module(model)
    with torch.inference_mode(False):
        memo = {id(value): twin for value in reach(model) if (twin := _copy_tensor(value)) is not None}
        memo |= {id(parameter): _blank(parameter) for parameter in _alone(model, blank)}
        try:
            return copy.deepcopy(model, dict(memo))
        except Exception:  # a module's own __deepcopy__ or __reduce__ may raise anything
            memo |= _shared(model, memo)
        try:
            return copy.deepcopy(model, memo)
        except Exception as error:
            advice = "Let its classes support copy.deepcopy"
            advice += "." if instead is None else f", or use {instead}, which works in place and needs no copy."
            raise ModelError(f"the model cannot be copied: {error}. {advice}") from error


class Spare:
    """A copy of a model that several functions use in turn, created on first use; the arguments are `copy_model`'s."""

    def __init__(self, model: nn.Module, *, instead: str | None = None) -> None:
        self._model, self._instead = model, instead
        self._copy: nn.Module | None = None

    def lend(self) -> nn.Module:
        """Return the copy to a caller that leaves it unchanged."""
        if self._copy is None:
            self._copy = copy_model(self._model, instead=self._instead)
        return self._copy

    def give(self) -> nn.Module:
        """Return the copy to a caller that changes it; the next caller gets a new copy."""
        copied, self._copy = self.lend(), None
        return copied

    def free(self) -> None:
        """Free the copy; the next caller gets a new one."""
        self._copy = None


def _alone(model: nn.Module, parameters: Collection[nn.Parameter]) -> list[nn.Parameter]:
    """Return the plain parameters among these that are used once and share no memory with another tensor."""
    if not parameters:
        return []
    used = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    tensors = [*used, *(value for value in reach(model) if isinstance(value, Tensor))]
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors if _has_storage(tensor))
    plain = [p for p in parameters if type(p) is nn.Parameter and _has_storage(p)]
    return [p for p in plain if users[p.untyped_storage().data_ptr()] == 1]


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not is_lazy(tensor) and not tensor.is_nested


def _blank(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of the same kind, filled with zeros, whose memory is not touched before it is used."""
    return nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad)


def _shared(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return by id the objects that cannot be copied and are not modules, those inside other objects first."""
    shared: dict[int, Any] = {}
    for value in reversed(list(reach(model))):
        if isinstance(value, nn.Module | Tensor | tuple | frozenset) or base_container(value) or _is_plain(value):
            continue
        try:
            copy.deepcopy(value, memo | shared)
        except Exception:  # raised by the object's own code
            shared[id(value)] = value
    return shared


def _is_plain(value: Any) -> bool:
    """Whether an object is copied attribute by attribute; its attributes are then checked separately."""
    custom = (getattr(type(value), name, None) is not getattr(object, name, None) for name in _CUSTOM)
    return is_record(value) and not any(custom)


def _copy_tensor(tensor: Any) -> Tensor | None:
    """Return a copy of a tensor that ``copy.deepcopy`` rejects; None for anything else."""
    if not isinstance(tensor, Tensor):
        return None
    if is_lazy(tensor):
        cls: Any = type(tensor)
        return None if isinstance(tensor, nn.Parameter) else cls(device=tensor.device, dtype=tensor.dtype)
    if not tensor.is_leaf:
        return tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return None
    if tensor.layout not in _COPIED or (tensor.grad is not None and not tensor.grad.is_leaf):
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return None
