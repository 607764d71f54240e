"""Weights of layers by name: what a layer computes with, however it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from rankfold.errors import NoMatchingLayer
from rankfold.inventory.kinds import ROLES, conv1d_base, is_attention, weight_hook


def layer_weight(model: nn.Module, name: str) -> Tensor:
    """Return a layer's effective weight, detached.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        A layer's name or alias as `inspect` lists it, including the projections of an ``nn.MultiheadAttention``.

    Returns
    -------
    Tensor
        In torch's layout, ``(out, in)`` also for transformers' ``Conv1D``. If a parametrization (weight or spectral
        norm, a pruning mask) computes the weight, its value in eval mode, without advancing power iterations.
        Otherwise the parameter's own memory, not a copy.

    Raises
    ------
    NoMatchingLayer
        If the model has no such layer.
    """
    module, role = find_layer(model, name)
    with torch.no_grad():
        weight = _effective(module, "weight") if role is None else projection(module, role)[0]
    if not isinstance(weight, Tensor):
        raise NoMatchingLayer(f"{name!r} is not a layer: {type(module).__name__} has no weight.")
    weight = weight.detach()
    return weight.mT if role is None and conv1d_base(module) is not None else weight


def layer_bias(model: nn.Module, name: str) -> Tensor | None:
    """Return a layer's effective bias, detached; None if it has none. See `layer_weight`."""
    module, role = find_layer(model, name)
    with torch.no_grad():
        bias = _effective(module, "bias") if role is None else projection(module, role)[1]
    return bias.detach() if isinstance(bias, Tensor) else None


def stored_weight(model: nn.Module, name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the parameter that stores a layer's weight, and a function that views it as the weight in torch's layout.

    Several projections of an attention may share a parameter, and that of transformers' ``Conv1D`` is transposed. The
    weight must not be computed by a parametrization.
    """
    module: Any
    module, role = find_layer(model, name)
    if role in (None, "out_proj"):
        holder = module if role is None else module.out_proj
        return holder.weight, lambda tensor: tensor.mT if conv1d_base(holder) is not None else tensor
    if not module._qkv_same_embed_dim:
        return getattr(module, f"{role}_weight"), lambda tensor: tensor
    return module.in_proj_weight, lambda packed: packed[_rows(module, role)]


def find_layer(model: nn.Module, name: str) -> tuple[nn.Module, str | None]:
    """Return the module of a layer; for a projection, its attention and the name of the projection.

    Raises
    ------
    NoMatchingLayer
        If the model has no module of this name.
    """
    parent, _, last = name.rpartition(".")
    if last in ROLES:
        attention = find_module(model, parent)
        if attention is not None and is_attention(attention):
            return attention, last
    module = find_module(model, name)
    if module is None:
        raise NoMatchingLayer.of("the model", name, [n for n, _ in model.named_modules() if n])
    return module, None


def find_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module at a dotted path; None if there is none, as for a projection of an attention."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def projection(attention: nn.Module, role: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of one of `ROLES` of an ``nn.MultiheadAttention``."""
    mha: Any = attention
    if role == "out_proj":
        return _effective(mha.out_proj, "weight"), _effective(mha.out_proj, "bias")
    rows = _rows(attention, role)
    packed = mha._qkv_same_embed_dim
    weight = _effective(mha, "in_proj_weight")[rows] if packed else _effective(mha, f"{role}_weight")
    bias = _effective(mha, "in_proj_bias")
    return weight, None if bias is None else bias[rows]


def _rows(attention: Any, role: str) -> slice:
    """Return the rows of the packed projections that belong to one of them."""
    start = ROLES.index(role) * attention.embed_dim
    return slice(start, start + attention.embed_dim)


def _effective(module: nn.Module, name: str) -> Any:
    """Return a tensor of a module as its forward uses it in eval mode."""
    hook = weight_hook(module, name)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    if isinstance(hook, prune.BasePruningMethod):
        return hook.apply_mask(module)
    if hook is not None:
        return hook.compute_weight(module)
    if parametrize.is_parametrized(module, name):
        with in_eval(getattr(module.parametrizations, name)):  # in training mode, a read advances power iterations
            return getattr(module, name)
    return getattr(module, name, None)


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Run the block with all modules in eval mode, set one by one because ``train()`` may be overridden to do more."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training
