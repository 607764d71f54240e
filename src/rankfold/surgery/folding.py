"""Fold batch normalization into the convolution or linear layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from rankfold._tensors import copied, detached
from rankfold.errors import ModelError
from rankfold.inventory import on_device_of, undisturbed
from rankfold.inventory.exported import trace
from rankfold.inventory.kinds import STOCK, is_observed
from rankfold.surgery.exchange import exchange_

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OPERATIONS = frozenset(
    f"aten::{name}"
    for name in (
        "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    )
)  # fmt: skip


def fold_batchnorm_(model: nn.Module, example_input: Any) -> list[str]:
    """Fold the batch norms of a model in place, and return their names.

    In evaluation mode, a batch norm multiplies each channel by ``gamma / sqrt(var + eps)`` and adds ``beta`` and the
    scaled ``-mean``. The stock layer of ``torch.nn`` before it absorbs both, in float64, if nothing else reads its
    output or uses its weight. For a factored layer, that is the last factor. Other batch norms stay.

    Parameters
    ----------
    model : Module
        A model in eval mode.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.

    Raises
    ------
    ModelError
        If the model is in training mode, or ``torch.export`` cannot trace it.
    """
    if model.training:
        raise ModelError("batch norms can only be folded in eval mode. Call model.eval() first.")
    with undisturbed(model):
        inputs = copied(detached(on_device_of(model, example_input)))
        program = trace(model, inputs, advice="Folding needs the graph; strip the model without fold_batchnorm.")
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs = {}
    for node in program.graph.nodes:
        names = _pair(node, tensors)
        if names is not None and _can_fold(modules[names[0]], modules[names[1]]):
            pairs[names[1]] = names[0]
    exchange_(model, {modules[norm]: nn.Identity() for norm in pairs})
    for norm, layer in pairs.items():
        _absorb_(modules[layer], modules[norm])
    return list(pairs)


def _pair(node: fx.Node, tensors: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the modules of a product and of the batch norm that alone reads it; None for other nodes."""
    if _operation(node) != "aten::batch_norm" or node.args[5]:  # statistics of the batch
        return None
    product, mean = node.args[0], node.args[3]
    if not isinstance(product, fx.Node) or _operation(product) not in _OPERATIONS or len(product.users) > 1:
        return None
    if _operation(product) == "aten::linear" and product.meta["val"].ndim != 2:  # normalized over another dimension
        return None
    owned = [tensor for tensor in (product.args[1], mean) if isinstance(tensor, fx.Node)]
    if len(owned) < 2 or any(tensor.name not in tensors or len(tensor.users) > 1 for tensor in owned):
        return None
    layer, norm = (tensors[tensor.name].rpartition(".")[0] for tensor in owned)
    return layer, norm


def _operation(node: fx.Node) -> str | None:
    schema = getattr(node.target, "_schema", None)
    return None if schema is None else schema.name


def _can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether both are plain modules of torch, which hooks do not observe."""
    observed = any(map(is_observed, (layer, norm)))
    return type(layer) in STOCK and type(norm) in _NORMS and not observed


@torch.no_grad()
def _absorb_(layer: nn.Module, norm: nn.Module) -> None:
    """Give a layer the weight and bias of itself followed by a batch norm."""
    weight, mean, variance, eps = layer.weight, norm.running_mean, norm.running_var, norm.eps
    assert isinstance(weight, nn.Parameter)
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    assert isinstance(eps, float)
    scale = (variance.double() + eps).rsqrt()
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if isinstance(layer.bias, Tensor):
        shift = shift + layer.bias.double() * scale
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias.double()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):  # (in, out / groups, ...)
        parts = weight.double().unflatten(0, (layer.groups, -1))
        new = (parts * scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)
    else:
        new = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter(new.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
