"""Weights and second moments of layers that lose channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rankfold.factor.moments import Moments
from rankfold.records import LayerInfo
from rankfold.records.narrowing import Removed, cut


def narrowed_weight(weight: Tensor, layer: LayerInfo, removed: Removed) -> Tensor:
    """Return what a narrowing leaves of a layer's weight, a copy.

    Parameters
    ----------
    weight : Tensor
        In torch's layout (`LayerInfo.weight_shape`).
    layer : LayerInfo
        The layer in the original model.
    removed : mapping
        The indices that it loses, by side (`Narrowing.removed`).

    Raises
    ------
    PlanMismatch
        As `rankfold.records.narrowing.cut`.
    """
    parts = cut(layer, removed)
    if layer.transposed:
        size, sides = layer.group_in, [(part.inputs, part.outputs) for part in parts]
    else:
        size, sides = layer.group_out, [(part.outputs, part.inputs) for part in parts]
    rows = [part.group * size + i for part, (mine, _) in zip(parts, sides, strict=True) for i in mine]
    kept = weight.detach().index_select(0, torch.tensor(rows, device=weight.device))
    columns = torch.tensor([others for _, others in sides], device=weight.device)  # (groups, kept columns)
    if len({others for _, others in sides}) == 1:
        return kept.index_select(1, columns[0])
    columns = columns.repeat_interleave(len(sides[0][0]), 0)
    return kept.take_along_dim(columns.reshape(*columns.shape, *(1,) * (kept.ndim - 2)), 1)


def lost_energy(weight: Tensor, layer: LayerInfo, removed: Removed, error: float = 0.0) -> float:
    """Return the relative squared error of a layer's weight in which removed weights count as lost.

    Parameters
    ----------
    weight, layer, removed
        As for `narrowed_weight`.
    error : float
        Relative error of the factors of what remains; 0 if it stays dense.
    """
    weight = weight.double()
    total = float(weight.square().sum())
    if total == 0:
        return 0.0
    return 1 - (1 - error**2) * float(narrowed_weight(weight, layer, removed).square().sum()) / total


def narrowed_outputs(tensor: Tensor, layer: LayerInfo, removed: Removed) -> Tensor:
    """Return what a narrowing leaves of a vector over a layer's output channels, such as its bias."""
    rows = [part.group * layer.group_out + i for part in cut(layer, removed) for i in part.outputs]
    return tensor.detach().index_select(0, torch.tensor(rows, device=tensor.device))


def narrowed_moments(moments: Moments, layer: LayerInfo, removed: Removed) -> Moments:
    """Return the second moments of the inputs that a narrowing leaves, as in the original model.

    In the narrowed model they differ, because the layers before have lost channels, too.
    """
    parts = cut(layer, removed)

    def remaining(moment: torch.Tensor, size: int) -> torch.Tensor:
        chosen = []
        for part in parts:
            rows = torch.tensor([i * size + position for i in part.inputs for position in range(size)])
            rows = rows.to(moment.device)
            chosen.append(moment[part.group].index_select(0, rows).index_select(1, rows))
        return torch.stack(chosen)

    patch = None if moments.patch is None else remaining(moments.patch, layer.kernel_numel)
    return replace(moments, channel=remaining(moments.channel, 1), patch=patch)
