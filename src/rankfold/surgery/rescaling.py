"""Scale and shift the outputs of a factored layer: what folding a batch norm into it comes to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.errors import UnsupportedLayer
from rankfold.factor.linalg import double
from rankfold.records import LayerInfo

_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-8}


def output_scales(old: Tensor, new: Tensor, info: LayerInfo) -> Tensor:
    """Return the scale of each output channel ``(groups, out / groups)`` that makes one weight of the other.

    Parameters
    ----------
    old, new : Tensor
        Weights in torch's layout.
    info : LayerInfo
        The layer.

    Raises
    ------
    UnsupportedLayer
        If the new weight has another shape, or is not such a multiple of the old one.
    """
    if new.shape == old.shape:
        exact_old, exact_new = (
            _grouped(double(w.detach()), info.groups, info.transposed).flatten(2) for w in (old, new)
        )
        squares = exact_old.square().sum(-1)
        scales = torch.where(squares > 0, (exact_old * exact_new).sum(-1) / squares.clamp_min(1e-300), 1.0)
        rest = (exact_new - scales[..., None] * exact_old).norm()
        if rest <= _TOLERANCE.get(old.dtype, 1e-4) * exact_new.norm():
            return scales
    raise UnsupportedLayer(
        f"{info.title} is factored: its weight is computed from the factors. Only a multiple of each output channel, "
        "as when a batch norm is folded, can be assigned to it; change the weight before compressing."
    )


def scale_outputs_(last: nn.Module, scales: Tensor, info: LayerInfo) -> None:
    """Multiply the weight of a layer's last stage in place, so that each output channel is scaled.

    Raises
    ------
    UnsupportedLayer
        If the last stage is not a plain convolution or linear layer with a weight for every output (gauged factors,
        TT-matrix).
    """
    if not isinstance(last, nn.Linear | nn.modules.conv._ConvNd):
        raise UnsupportedLayer(
            f"the outputs of {info.title} cannot be scaled: its last stage is a {type(last).__name__}. "
            "Fold batch norms before compressing."
        )
    transposed = isinstance(last, nn.modules.conv._ConvNd) and last.transposed
    groups = last.groups if isinstance(last, nn.modules.conv._ConvNd) else 1
    with torch.no_grad():
        weight = _grouped(last.weight, groups, transposed)  # a view in any memory format
        weight.mul_(scales.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)).to(weight))


def set_bias_(last: nn.Module, bias: nn.Parameter | None, info: LayerInfo) -> None:
    """Give a layer's last stage another bias, or one at all.

    Raises
    ------
    UnsupportedLayer
        If the last stage adds no bias (a TT-matrix of a layer without one).
    """
    if "bias" not in last._parameters:
        raise UnsupportedLayer(f"{info.title} has no place for a bias: its last stage is a {type(last).__name__}.")
    last.register_parameter("bias", bias)


def _grouped(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """View a weight as ``(groups, out / groups, ...)``."""
    grouped = weight.unflatten(0, (groups, -1))
    return grouped.movedim(2, 1) if transposed else grouped
