"""``cp``: canonical polyadic decomposition of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from rankfold._config import is_integer, is_number, require
from rankfold.factor.als import Effort, even_out
from rankfold.factor.canonical import Canonical
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.methods._stages import KernelMethod, pointwise, spatial
from rankfold.methods.contract import Prepared, channel_metric, rank_values, registry, whiten_inputs
from rankfold.records import Blueprint, LayerInfo, Ranks

QUICK = 30
"""The most sweeps of a large weight in a search, which compares the factors of many ranks."""
LARGE = 2**17
"""Number of elements from which a weight is large."""


@dataclass(frozen=True, slots=True)
class PreparedCP:
    """CP decompositions of the weight ``(groups, o, i, *kernel)`` in the metric."""

    canonical: Canonical
    layer: LayerInfo
    metric: Metric | None
    effort: Effort

    def error(self, ranks: Ranks) -> float:
        """Return the error of the start, an upper bound on that of the factors."""
        return self.canonical.relative_error(ranks[0], self.effort)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return 1x1 ``I -> R``, a depthwise 1-D convolution for each axis, 1x1 ``R -> O``."""
        layer, (rank,) = self.layer, ranks
        factors = self.canonical.factors(rank, self.effort)
        if self.metric is not None:
            factors = even_out([factors[0], self.metric.inverse @ factors[1], *factors[2:]])
        out, inn, *kernels = factors
        dims = len(layer.kernel)
        stages = [inn.mT.reshape(layer.groups, rank, layer.group_in, *(1,) * dims)]
        for axis, kernel in enumerate(kernels):
            shape = [1] * dims
            shape[axis] = kernel.shape[1]
            stages.append(kernel.mT.reshape(layer.groups * rank, 1, 1, *shape))
        stages.append(out.reshape(layer.groups, layer.group_out, rank, *(1,) * dims))
        return tuple(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class CP(Effort, KernelMethod):
    """Canonical polyadic decomposition; ranks ``(R,)``.

    Lebedev et al. (2015), "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", section 3.2.
    The iterations start from the singular triples of the kernel slices and control the norm of the terms, so the method
    is deterministic and cannot diverge.

    Parameters
    ----------
    iterations : int
        Maximum number of sweeps of alternating least squares; 0 keeps the starting point.
    tolerance : float
        Stop when the last 20 sweeps lowered the relative error by less than this share of it.
    target : float
        Stop as soon as the relative error is at most this.
    norm_limit : float
        Bound on the energy of the rank-one terms, relative to that of the weight. It keeps terms from growing and
        cancelling each other.
    starts : int
        Maximum number of starting points. Small weights get several, of which the best result is kept.
    """

    name = "cp"
    iterative = True
    flexibility = 2

    def __post_init__(self) -> None:
        require(is_integer(self.iterations) and self.iterations >= 0, "iterations", self.iterations, "an integer >= 0")
        require(is_number(self.tolerance) and self.tolerance >= 0, "tolerance", self.tolerance, "a number >= 0")
        require(
            is_number(self.target) and 0 <= self.target < 1, "target", self.target, "a relative error, 0 <= target < 1"
        )
        require(is_number(self.norm_limit) and self.norm_limit >= 1, "norm_limit", self.norm_limit, "a number >= 1")
        require(is_integer(self.starts) and 1 <= self.starts <= 100, "starts", self.starts, "an integer in 1..100")

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the rank at which the start becomes exact: kernel positions times the smaller channel mode."""
        return (layer.kernel_numel * min(layer.group_out, layer.group_in),)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return evenly spaced ranks up to break-even in parameters."""
        per_rank = layer.group_in + sum(layer.kernel) + layer.group_out
        break_even = max(1, layer.group_in * layer.group_out * layer.kernel_numel // per_rank)
        limit = min(break_even, self.max_ranks(layer)[0])
        return [(r,) for r in rank_values(limit, multiple=multiple, points=points)]

    def quick(self, layer: LayerInfo) -> Self:
        """Return the method with at most `QUICK` sweeps if the weight has at least `LARGE` elements."""
        large = math.prod(layer.weight_shape) >= LARGE
        return replace(self, iterations=min(self.iterations, QUICK)) if large else self

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return d + 2 stages."""
        inner = ranks[0] * layer.groups
        axes = [spatial(layer, f"axis{a}", inner, inner, groups=inner, axes=(a,)) for a in range(len(layer.kernel))]
        first = pointwise(layer, "input", layer.group_in, ranks[0])
        last = pointwise(layer, "output", ranks[0], layer.group_out, bias=layer.bias)
        return Blueprint((first, *axes, last))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Decompose the kernel slices."""
        metric = channel_metric(moments)
        return PreparedCP(Canonical(whiten_inputs(weight, metric)), layer, metric, self)


registry.register(CP, summary="canonical polyadic decomposition")
