"""Composition of factors into a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rankfold.methods.contract import without_autocast
from rankfold.records import Blueprint, ConvSpec, LayerInfo, LinearSpec, ReshapeSpec


def compose(blueprint: Blueprint, layer: LayerInfo, factors: Sequence[Tensor]) -> Tensor:
    """Return the weight of a factored layer: a pure function, differentiable with respect to the factors.

    Parameters
    ----------
    blueprint : Blueprint
        The stages. A gauge makes no difference: it changes the storage of factors, not the function.
    layer : LayerInfo
        The layer before it is factored.
    factors : sequence of Tensor
        Canonical factors in the blueprint's order, of one data type and device.

    Returns
    -------
    Tensor
        In torch's layout (`LayerInfo.weight_shape`), contiguous.

    Examples
    --------
    >>> import torch
    >>> from rankfold import methods
    >>> from rankfold.cost.exploration import layer_of
    >>> layer, svd = layer_of("linear:6x4"), methods.get("svd")
    >>> weight = torch.randn(layer.weight_shape)
    >>> factors = methods.prepare(svd, weight, layer).factorize((4,))
    >>> bool(torch.allclose(methods.compose(svd.blueprint(layer, (4,)), layer, factors).float(), weight, atol=1e-5))
    True
    """
    with without_autocast(factors[0].device.type):
        if layer.kind == "linear":
            return _linear(blueprint.plain, layer, factors)
        return _convolution(layer, factors)


def _linear(blueprint: Blueprint, layer: LayerInfo, factors: Sequence[Tensor]) -> Tensor:
    """Return the image of the identity, ``(out, in)``."""
    pending, first = list(factors), factors[0]
    if isinstance(blueprint.stages[0], LinearSpec):
        stages, out = blueprint.stages[1:], pending.pop(0).mT.contiguous()
    else:
        stages, out = blueprint.stages, torch.eye(layer.in_channels, dtype=first.dtype, device=first.device)
    for spec in stages:
        if isinstance(spec, ReshapeSpec):
            out = out.reshape(-1, *spec.tail)
        elif isinstance(spec, LinearSpec):
            out = functional.linear(out, pending.pop(0))
        elif isinstance(spec, ConvSpec):  # pointwise, between reshapes
            out = functional.conv1d(out, pending.pop(0).flatten(0, 1), groups=spec.groups)
    return out.reshape(layer.in_channels, layer.out_channels).mT.contiguous()


def _convolution(layer: LayerInfo, factors: Sequence[Tensor]) -> Tensor:
    """Return the composition of the stages' kernels; each kernel axis belongs to one stage."""
    total = factors[0].flatten(0, 1)
    for part in factors[1:]:  # (groups, out / groups, in / groups, *kernel)
        groups, dims = part.shape[0], part.ndim - 3
        before = total.unflatten(0, (groups, -1))
        # Kernel axes to the front: matmul broadcasts over them and contracts the inner channels.
        front = [d + 3 for d in range(dims)]
        product = part.permute(*front, 0, 1, 2) @ before.permute(*front, 0, 1, 2)
        total = product.permute(dims, dims + 1, dims + 2, *range(dims)).flatten(0, 1)
    if not layer.transposed:
        return total.contiguous()  # callers view the weight
    grouped = total.unflatten(0, (layer.groups, layer.group_out))
    return grouped.movedim(2, 1).flatten(0, 1).contiguous()
