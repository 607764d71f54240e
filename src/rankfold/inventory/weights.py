"""Weights of layers by name: what a layer computes with, however it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from rankfold.errors import NoMatchingLayer
from rankfold.inventory.kinds import ROLES, conv1d_base, is_attention, weight_hook


def layer_weight(model: nn.Module, name: str) -> Tensor:
    """Return a layer's effective weight.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        A layer's name as `inspect` lists it (or an alias); the projections of an
        ``nn.MultiheadAttention`` included.

    Returns
    -------
    Tensor
        In torch's layout, ``(out, in)`` of transformers' ``Conv1D`` too, detached. Where a
        parametrisation (weight or spectral norm, a pruning mask) computes the weight, what it
        computes in eval mode; power iterations do not advance.
        Otherwise the parameter's own memory, not a copy.

    Raises
    ------
    NoMatchingLayer
        If the model has no such layer.
    """
    module, role = find_layer(model, name)
    with torch.no_grad():
        weight = effective(module, "weight") if role is None else projection(module, role)[0]
    if not isinstance(weight, Tensor):
        raise NoMatchingLayer(f"{name!r} is no layer: {type(module).__name__} has no weight.")
    weight = weight.detach()
    return weight.mT if role is None and conv1d_base(module) is not None else weight


def layer_bias(model: nn.Module, name: str) -> Tensor | None:
    """Return a layer's effective bias, detached; None if it has none. See `layer_weight`."""
    module, role = find_layer(model, name)
    with torch.no_grad():
        bias = effective(module, "bias") if role is None else projection(module, role)[1]
    return bias.detach() if isinstance(bias, Tensor) else None


def stored_weight(model: nn.Module, name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the tensor that stores a layer's weight, and the view of its like that is the weight in torch's layout.

    The tensor is the parameter itself: several projections of an attention may share one, and that of transformers'
    ``Conv1D`` is transposed. Weights must not be computed by a parametrisation.
    """
    module: Any
    module, role = find_layer(model, name)
    if role is None:
        return module.weight, torch.t if conv1d_base(module) is not None else _whole
    if role == "out_proj":
        return module.out_proj.weight, _whole
    if not module._qkv_same_embed_dim:
        return getattr(module, f"{role}_weight"), _whole
    start = ROLES.index(role) * module.embed_dim
    return module.in_proj_weight, lambda packed: packed[start : start + module.embed_dim]


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def find_layer(model: nn.Module, name: str) -> tuple[nn.Module, str | None]:
    """Return the module of a layer; for a projection, its attention and which projection it is.

    Raises
    ------
    NoMatchingLayer
        If there is no module of this name.
    """
    parent, _, last = name.rpartition(".")
    if last in ROLES:
        attention = find_module(model, parent)
        if attention is not None and is_attention(attention):
            return attention, last
    module = find_module(model, name)
    if module is None:
        near = get_close_matches(name, [n for n, _ in model.named_modules()], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise NoMatchingLayer(f"the model has no layer {name!r}.{hint}")
    return module, None


def find_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of a dotted path; None if there is none, as for a projection of an attention."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def projection(attention: nn.Module, role: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of one of `ROLES` of an ``nn.MultiheadAttention``."""
    mha: Any = attention
    if role == "out_proj":
        return effective(mha.out_proj, "weight"), effective(mha.out_proj, "bias")
    size = mha.embed_dim
    start = ROLES.index(role) * size
    if mha._qkv_same_embed_dim:
        weight = effective(mha, "in_proj_weight")[start : start + size]
    else:
        weight = effective(mha, f"{role}_weight")
    bias = effective(mha, "in_proj_bias")
    return weight, bias if bias is None else bias[start : start + size]


def effective(module: nn.Module, name: str) -> Any:
    """Return a tensor of a module as its forward sees it in eval mode."""
    hook = weight_hook(module, name)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    if isinstance(hook, prune.BasePruningMethod):
        return hook.apply_mask(module)
    if hook is not None:
        return hook.compute_weight(module)
    if parametrize.is_parametrized(module, name):
        with _in_eval(getattr(module.parametrizations, name)):
            return getattr(module, name)
    return getattr(module, name, None)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """Spectral norm advances its power iteration whenever it is read in training mode."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training
