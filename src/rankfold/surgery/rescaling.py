"""Scale and shift the outputs of a factored layer, as folding a batch norm does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.errors import UnsupportedLayer
from rankfold.factor.linalg import double
from rankfold.methods import to_canonical
from rankfold.records import LayerInfo

_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-8}


def output_scales(old: Tensor, new: Tensor, info: LayerInfo) -> Tensor:
    """Return the scale of each output channel ``(groups, out / groups)`` that turns one weight into another.

    Raises
    ------
    UnsupportedLayer
        If the new weight has another shape, or is not such a multiple of the old one.
    """
    if new.shape == old.shape:
        exact_old, exact_new = (to_canonical(double(w.detach()), info).flatten(2) for w in (old, new))
        squares = exact_old.square().sum(-1)
        scales = torch.where(squares > 0, (exact_old * exact_new).sum(-1) / squares.clamp_min(1e-300), 1.0)
        rest = (exact_new - scales[..., None] * exact_old).norm()
        if rest <= _TOLERANCE.get(old.dtype, 1e-4) * exact_new.norm():
            return scales
    raise UnsupportedLayer(
        f"{info.title} is factored: its weight is computed from the factors. Only a weight whose output channels are "
        "multiples of the present ones, as after folding a batch norm, can be assigned. Change the weight before "
        "compressing."
    )


def scale_outputs_(last: nn.Module, scales: Tensor, info: LayerInfo) -> None:
    """Scale each output channel of a layer, by multiplying the weight of its last stage in place.

    Raises
    ------
    UnsupportedLayer
        If the last stage is not a stock layer that holds a weight for every output (gauged factors, TT-matrix).
    """
    if not isinstance(last, nn.Linear | nn.modules.conv._ConvNd):
        raise UnsupportedLayer(
            f"the outputs of {info.title} cannot be scaled: its last stage is of type {type(last).__name__}. "
            "Fold batch norms before compressing."
        )
    with torch.no_grad():
        weight = grouped(last)
        weight.mul_(scales.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)).to(weight))


def set_bias_(last: nn.Module, bias: nn.Parameter | None, info: LayerInfo) -> None:
    """Set or remove the bias of a layer's last stage.

    Raises
    ------
    UnsupportedLayer
        If the last stage cannot hold a bias (a TT-matrix of a layer without one).
    """
    if "bias" not in last._parameters:
        raise UnsupportedLayer(
            f"{info.title} cannot hold a bias: its last stage is of type {type(last).__name__}. "
            "Add the bias before compressing."
        )
    last.register_parameter("bias", bias)


def grouped(layer: nn.Linear | nn.modules.conv._ConvNd) -> Tensor:
    """View the weight of a stock layer as ``(groups, out / groups, ...)``, in any memory format."""
    if isinstance(layer, nn.Linear):
        return layer.weight.unsqueeze(0)
    weight = layer.weight.unflatten(0, (layer.groups, -1))
    return weight.movedim(2, 1) if layer.transposed else weight
