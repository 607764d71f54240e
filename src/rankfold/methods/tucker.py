"""``tucker``: Tucker-2 of a convolution's channel modes, both or one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from torch import Tensor

from rankfold._config import is_integer, is_number, require
from rankfold.factor.moments import Moments
from rankfold.factor.regression import TuckerRegression
from rankfold.factor.tucker import Tucker2
from rankfold.methods._stages import KernelMethod, pointwise, spatial
from rankfold.methods.contract import channel_metric, rank_values, registry, whiten_inputs
from rankfold.records import Blueprint, LayerInfo, Ranks, Stage


@dataclass(frozen=True, slots=True)
class PreparedTucker:
    """A Tucker-2 decomposition as factors of convolutions.

    `factors` returns ``(groups, o, r_o)``, the core ``(groups, r_o, r_i, K)`` and ``(groups, r_i, i)`` for both ranks.
    """

    decomposition: Tucker2 | TuckerRegression
    factors: Callable[[int, int], tuple[Tensor, Tensor, Tensor]]
    layer: LayerInfo

    def error(self, ranks: Ranks) -> float:
        """Return an upper bound on the error of the factors."""
        return self.decomposition.relative_error(*ranks)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return input projection, core and output projection; projections of full rank are merged into the core."""
        layer, (rank_out, rank_in) = self.layer, ranks
        out, core, inn = self.factors(rank_out, rank_in)
        ones = (1,) * len(layer.kernel)
        stages: list[Tensor] = []
        if rank_in == layer.group_in:
            core = (core.movedim(2, -1) @ inn.unsqueeze(1)).movedim(-1, 2)
        else:
            stages.append(inn.reshape(*inn.shape, *ones))
        if rank_out == layer.group_out:
            core = (out @ core.flatten(2)).reshape(layer.groups, rank_out, -1, core.shape[-1])
            tail: list[Tensor] = []
        else:
            tail = [out.reshape(*out.shape, *ones)]
        stages.append(core.reshape(*core.shape[:3], *layer.kernel))
        return (*stages, *tail)


class TuckerShape(KernelMethod):
    """Base of the Tucker-2 methods: input projection, kernel, output projection."""

    __slots__ = ()

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the channels of a group, output first."""
        return (layer.group_out, layer.group_in)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return the product of evenly spaced ranks, half of `points` per mode."""
        side = max(4, points // 2)
        outs = rank_values(layer.group_out, multiple=multiple, points=side)
        ins = rank_values(layer.group_in, multiple=multiple, points=side)
        return list(product(outs, ins))

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return 1x1 ``I -> r_i``, the kernel ``r_i -> r_o``, 1x1 ``r_o -> O``, without projections of full rank."""
        rank_out, rank_in = ranks
        stages: list[Stage] = []
        if rank_in < layer.group_in:
            stages.append(pointwise(layer, "input", layer.group_in, rank_in))
        last = rank_out == layer.group_out
        stages.append(spatial(layer, "core", rank_in * layer.groups, rank_out * layer.groups, bias=layer.bias and last))
        if not last:
            stages.append(pointwise(layer, "output", rank_out, layer.group_out, bias=layer.bias))
        return Blueprint(tuple(stages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tucker(TuckerShape):
    """Tucker-2 by HOSVD and HOOI; ranks ``(r_o, r_i)``, either may be full (partial Tucker).

    Kim et al. (2016), "Compression of deep convolutional neural networks for fast and low power mobile applications",
    section 3.1; the factors by De Lathauwer, De Moor & Vandewalle (2000).

    Parameters
    ----------
    iterations : int
        Maximum number of sweeps of higher-order orthogonal iteration after the truncated HOSVD; 0 keeps the HOSVD.
    tolerance : float
        Stop when the update of one mode lowers the relative error by less than this.
    """

    name = "tucker"
    adaptive = True
    flexibility = 4

    iterations: int = 20
    tolerance: float = 2e-4

    def __post_init__(self) -> None:
        require(is_integer(self.iterations) and self.iterations >= 0, "iterations", self.iterations, "an integer >= 0")
        require(is_number(self.tolerance) and self.tolerance >= 0, "tolerance", self.tolerance, "a number >= 0")

    def unfoldings(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the weight unfolded by output and by input channels."""
        return weight.flatten(2), weight.movedim(2, 1).flatten(2)

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTucker:
        """Keep the weight; bases are computed when errors or factors are requested.

        With the patch moment, the core and the output projection are fitted to the layer's output.
        """
        if moments is not None and moments.patch is not None:
            regression = TuckerRegression.of(weight, moments.channel, moments.patch)
            return PreparedTucker(regression, regression.factors, layer)
        metric = channel_metric(moments)
        tucker = Tucker2(whiten_inputs(weight, metric), metric)
        factors = partial(tucker.hooi, iterations=self.iterations, tolerance=self.tolerance)
        return PreparedTucker(tucker, factors, layer)


registry.register(Tucker, summary="Tucker-2 of the channel modes, both or one")
