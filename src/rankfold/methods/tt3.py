"""``tt3``: RENE's three-core tensor train of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.moments import Moments
from rankfold.factor.tucker import Tucker2
from rankfold.methods.contract import channel_metric, registry, whiten_inputs
from rankfold.methods.tucker import PreparedTucker, TuckerShape
from rankfold.records import LayerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class TT3(TuckerShape):
    """Cores ``G_t (O, R1)``, ``G_y (R1, K1 K2, R2)``, ``G_s (R2, I)``; ranks ``(R1, R2)``, the output side first.

    Aghababaei-Harandi & Amini (RENE), eq. 3. The same stages as `tucker`; the factors come from one pass of TT-SVD.
    """

    name = "tt3"
    adaptive = True
    flexibility = 4

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTucker:
        """Keep the weight; bases are computed when errors or factors are requested."""
        metric = channel_metric(moments)
        tucker = Tucker2(whiten_inputs(weight, metric), metric)
        return PreparedTucker(tucker, tucker.sequential, layer)


registry.register(TT3, summary="three-core tensor train (RENE, eq. 3)")
