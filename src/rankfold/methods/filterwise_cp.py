"""``filterwise_cp``: one CP decomposition for each filter (NORTON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.als import even_out
from rankfold.factor.canonical import Canonical
from rankfold.factor.moments import Moments
from rankfold.methods._stages import pointwise, spatial
from rankfold.methods.contract import Prepared, channel_metric, rank_values, registry, whiten_inputs
from rankfold.methods.cp import CP, PreparedCP
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True)
class PreparedFilters(PreparedCP):
    """CP decompositions of all filters, one batch ``(groups * o, i, *kernel)`` in the metric."""

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
            inputs = rank if axis == dims - 1 else 1
            stages.append(kernel.mT.reshape(layer.out_channels * rank // inputs, 1, inputs, *shape))
        return tuple(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterwiseCP(CP):
    """Filter-wise CP; ranks ``(R,)``, the same for every filter.

    Pham, Zniyed & Nguyen (2025), NORTON: each filter ``(I, K1, ..., Kd)`` is a sum of R rank-one terms. The last 1-D
    convolution, which is grouped by filter, sums the R copies; this takes no extra layer, parameters or MACs. The
    options are those of `cp`, with one start by default: over many filters, good and bad starts average out.
    """

    name = "filterwise_cp"
    iterative = True

    starts: int = 1

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the rank at which every filter becomes exact."""
        rest = layer.kernel_numel // layer.kernel[0]
        return (min(layer.group_in, layer.kernel[0]) * rest,)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return every rank. There are few, and they count copies, so `multiple` does not apply."""
        return [(r,) for r in rank_values(self.max_ranks(layer)[0], multiple=1, points=points)]

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return d + 1 stages."""
        dims = len(layer.kernel)
        inner = ranks[0] * layer.out_channels
        axes = [spatial(layer, f"axis{a}", inner, inner, groups=inner, axes=(a,)) for a in range(dims - 1)]
        outs, a = layer.out_channels, dims - 1
        last = spatial(layer, f"axis{a}", inner, outs, groups=outs, axes=(a,), bias=layer.bias)
        return Blueprint((pointwise(layer, "input", layer.group_in, ranks[0] * layer.group_out), *axes, last))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Decompose the kernel slices of all filters in one batch."""
        metric = channel_metric(moments)
        filters = whiten_inputs(weight, metric).reshape(layer.out_channels, layer.group_in, *layer.kernel)
        return PreparedFilters(Canonical(filters), layer, metric, self)


registry.register(FilterwiseCP, summary="one CP decomposition for each filter (NORTON)")
