"""``tt``: tensor train of a convolution, one core for each channel mode and each kernel axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.factor.tensor_train import TensorTrain, orthonormalized
from rankfold.methods._stages import KernelMethod, pointwise, spatial
from rankfold.methods.contract import channel_metric, registry, whiten_inputs
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True)
class PreparedTT:
    """Tensor trains of the weight ``(groups, I, K1, ..., Kd, O)`` in the metric."""

    train: TensorTrain
    layer: LayerInfo
    metric: Metric | None

    def error(self, ranks: Ranks) -> float:
        """Return the TT-SVD bound: the root of the sum of the bonds' squared errors."""
        return self.train.relative_error(ranks)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return 1x1 ``I -> r1``, one 1-D convolution for each axis, 1x1 ``r -> O``."""
        cores = self.train.cores(ranks)
        if self.metric is not None:
            # Un-whitening worsens the conditioning; as in Tucker it is moved on, here to the last core.
            cores = orthonormalized([(self.metric.inverse @ cores[0].squeeze(1)).unsqueeze(1), *cores[1:]])
        dims = len(self.layer.kernel)
        stages = [cores[0].squeeze(1).mT.reshape(self.layer.groups, ranks[0], -1, *(1,) * dims)]
        for axis, core in enumerate(cores[1:-1]):
            shape = [1] * dims
            shape[axis] = core.shape[2]
            stages.append(core.permute(0, 3, 1, 2).reshape(self.layer.groups, core.shape[3], core.shape[1], *shape))
        stages.append(cores[-1].squeeze(-1).mT.reshape(self.layer.groups, self.layer.group_out, -1, *(1,) * dims))
        return tuple(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class TT(KernelMethod):
    """Tensor train; ranks ``(r1, ..., r_{d+1})`` for a d-dimensional convolution, in order of execution.

    Oseledets (2011), section 2 and algorithm 1; Kokhazadeh et al. (2025), section 2.2. Stages: 1x1 I -> r1; a 1-D
    convolution along each axis; 1x1 -> O.
    """

    name = "tt"
    adaptive = True

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of each bond's unfolding."""
        sizes = [layer.group_in, *layer.kernel, layer.group_out]
        return tuple(min(math.prod(sizes[:bond]), math.prod(sizes[bond:])) for bond in range(1, len(sizes)))

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return the ranks that no adjacent rank makes useless: ``r_j <= r_{j-1} n_j``, and vice versa."""
        sizes = [layer.group_in, *layer.kernel, layer.group_out]

        def useful(ranks: Ranks) -> bool:
            padded = (1, *ranks, 1)
            return all(
                padded[j + 1] <= padded[j] * sizes[j] and padded[j] <= padded[j + 1] * sizes[j]
                for j in range(len(sizes))
            )

        return list(filter(useful, KernelMethod.rank_grid(self, layer, multiple=multiple, points=points)))

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return d + 2 stages."""
        axes = [
            spatial(layer, f"axis{a}", ranks[a] * layer.groups, ranks[a + 1] * layer.groups, axes=(a,))
            for a in range(len(layer.kernel))
        ]
        first = pointwise(layer, "input", layer.group_in, ranks[0])
        last = pointwise(layer, "output", ranks[-1], layer.group_out, bias=layer.bias)
        return Blueprint((first, *axes, last))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTT:
        """Keep the weight; spectra and cores are computed when errors or factors are requested."""
        metric = channel_metric(moments)
        tensor = whiten_inputs(weight, metric).movedim(1, -1).contiguous()
        return PreparedTT(TensorTrain(tensor), layer, metric)


registry.register(TT, summary="tensor train over channels and kernel axes")
