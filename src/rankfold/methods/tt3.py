"""``tt3``: RENE's three-core tensor train of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.moments import Moments
from rankfold.factor.tucker import Sequential, Tucker2
from rankfold.methods._base import channel_metric, registry, whiten_inputs
from rankfold.methods._stages import conv_reason
from rankfold.methods.tucker import PreparedTucker, tucker_blueprint, tucker_grid
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class TT3Config:
    """``tt3`` has no options."""


class TT3:
    """Cores ``G_t (O, R1)``, ``G_y (R1, K1 K2, R2)``, ``G_s (R2, I)``; ranks ``(R1, R2)``, the output side first.

    Aghababaei-Harandi & Amini (RENE), eq. 3. The same stages as `tucker`; the factors come from one pass of TT-SVD.
    """

    name = "tt3"

    def __init__(self, config: TT3Config) -> None:
        self.config = config

    def supports(self, layer: LayerInfo) -> str | None:
        """Convolutions of any dimension with a spatial extent."""
        return conv_reason(layer)

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the channels of a group, output first."""
        return (layer.group_out, layer.group_in)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return a two-dimensional grid of ranks."""
        return tucker_grid(layer, multiple=multiple, points=points)

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return two or three stages, as for `tucker`."""
        return tucker_blueprint(layer, ranks)

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTucker:
        """Rotate the weight into the eigenbases of its mode Grams."""
        metric = channel_metric(moments)
        tucker = Tucker2.of(whiten_inputs(weight, metric), metric)
        return PreparedTucker(Sequential(tucker), layer)


registry.register("tt3", TT3, config=TT3Config, summary="three-core tensor train (RENE, eq. 3)")
