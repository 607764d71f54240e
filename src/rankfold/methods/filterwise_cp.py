"""``filterwise_cp``: one CP decomposition for each filter (NORTON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.als import Effort, even_out
from rankfold.factor.canonical import Canonical
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.methods._stages import pointwise, spatial
from rankfold.methods.contract import Prepared, channel_metric, rank_values, registry, whiten_inputs
from rankfold.methods.cp import CP
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True)
class PreparedFilters:
    """All filters as one batch ``(groups * o, i, *kernel)`` in the metric."""

    canonical: Canonical
    layer: LayerInfo
    metric: Metric | None
    effort: Effort

    def error(self, ranks: Ranks) -> float:
        """Return the error of the start over all filters together, an upper bound of the factors' error."""
        return self.canonical.relative_error(ranks[0], self.effort)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return 1x1 ``I -> R * O``, depthwise 1-D convolutions, and a last one that sums each filter's copies."""
        layer, (rank,) = self.layer, ranks
        inn, *kernels = self.canonical.factors(rank, self.effort)
        if self.metric is not None:
            inn = (self.metric.inverse.unsqueeze(1) @ inn.unflatten(0, (layer.groups, -1))).flatten(0, 1)
            inn, *kernels = even_out([inn, *kernels])
        dims = len(layer.kernel)
        stages = [inn.mT.reshape(layer.groups, layer.group_out * rank, layer.group_in, *(1,) * dims)]
        for axis, kernel in enumerate(kernels):
            shape = [1] * dims
            shape[axis] = kernel.shape[1]
            columns = kernel.mT  # (filters, rank, K)
            if axis < dims - 1:
                stages.append(columns.reshape(layer.out_channels * rank, 1, 1, *shape))
            else:
                stages.append(columns.reshape(layer.out_channels, 1, rank, *shape))
        return tuple(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterwiseCP(CP):
    """Filter-wise CP; ranks ``(R,)``, the same for every filter.

    Pham, Zniyed & Nguyen (2024), NORTON: each filter ``(I, K1, ..., Kd)`` is a sum of R rank-one terms. The sum over
    the R copies is done by the last 1-D convolution, which is grouped by filter: no extra layer, same parameters and
    MACs. The options are those of `cp`, with one start by default: what one filter loses another gains.
    """

    name = "filterwise_cp"

    starts: int = 1

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the rank from which on every filter is exact."""
        rest = layer.kernel_numel // layer.kernel[0]
        return (min(layer.group_in, layer.kernel[0]) * rest,)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return every rank; there are few, and they are counts of copies, so `multiple` does not apply."""
        return [(r,) for r in rank_values(self.max_ranks(layer)[0], multiple=1, points=points)]

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return d + 1 stages."""
        dims = len(layer.kernel)
        inner = ranks[0] * layer.out_channels
        axes = [spatial(layer, f"axis{a}", inner, inner, groups=inner, axes=(a,)) for a in range(dims - 1)]
        last = spatial(
            layer,
            f"axis{dims - 1}",
            inner,
            layer.out_channels,
            groups=layer.out_channels,
            axes=(dims - 1,),
            bias=layer.bias,
        )
        return Blueprint((pointwise(layer, "input", layer.group_in, ranks[0] * layer.group_out), *axes, last))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Decompose the kernel slices of all filters in one batch."""
        metric = channel_metric(moments)
        filters = whiten_inputs(weight, metric).reshape(layer.out_channels, layer.group_in, *layer.kernel)
        return PreparedFilters(Canonical(filters), layer, metric, self.effort)


registry.register(FilterwiseCP, summary="one CP decomposition for each filter (NORTON)")
