"""``spatial_svd``: a 2-D convolution as a vertical and a horizontal one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold.factor.matrix import SVDProjection
from rankfold.factor.moments import Moments
from rankfold.methods._stages import KernelMethod, spatial
from rankfold.methods.contract import channel_metric, registry, whiten_inputs
from rankfold.methods.svd import PreparedMatrix
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True)
class PreparedSpatial(PreparedMatrix):
    """Projections of the matrix ``(O * K2, I * K1)``."""

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the vertical ``(g, r, i, K1, 1)`` and the horizontal ``(g, o, r, 1, K2)`` factor."""
        layer, (rank,) = self.layer, ranks
        left, right = self.projection.factors(rank)
        k1, k2 = layer.kernel
        vertical = right.reshape(layer.groups, rank, layer.group_in, k1, 1)
        horizontal = left.reshape(layer.groups, layer.group_out, k2, rank).movedim(2, 3).unsqueeze(3)
        return vertical, horizontal


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialSVD(KernelMethod):
    """A (K1 x 1) convolution I -> r, then a (1 x K2) convolution r -> O; ranks ``(r,)``.

    Jaderberg, Vedaldi & Zisserman (2014), section 2, scheme 2, by SVD of the ``(O K2) x (I K1)`` matrix, which is
    optimal at its rank (Tai et al. 2016, theorem 1).
    """

    name = "spatial_svd"
    adaptive = True

    def supports(self, layer: LayerInfo) -> str | None:
        """Two-dimensional convolutions whose kernel extends along both axes."""
        reason = KernelMethod.supports(self, layer)
        if reason is None and (len(layer.kernel) != 2 or 1 in layer.kernel):
            return "it only supports 2-D convolutions whose kernel extends along both axes"
        return reason

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of the matrix."""
        return (min(layer.group_out * layer.kernel[1], layer.group_in * layer.kernel[0]),)

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return the vertical and the horizontal convolution."""
        inner = ranks[0] * layer.groups
        vertical = spatial(layer, "vertical", layer.in_channels, inner, axes=(0,))
        horizontal = spatial(layer, "horizontal", inner, layer.out_channels, axes=(1,), bias=layer.bias)
        return Blueprint((vertical, horizontal))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedSpatial:
        """Keep the matrix; with moments, every kernel row is weighted by the channel moment."""
        metric = channel_metric(moments)
        seen = None if metric is None else _as_matrix(whiten_inputs(weight, metric))
        return PreparedSpatial(SVDProjection(_as_matrix(weight), seen), layer)


def _as_matrix(weight: Tensor) -> Tensor:
    """View ``(g, o, i, K1, K2)`` as ``(g, o * K2, i * K1)``."""
    groups, o, i, k1, k2 = weight.shape
    return weight.permute(0, 1, 4, 2, 3).reshape(groups, o * k2, i * k1)


registry.register(SpatialSVD, summary="vertical then horizontal convolution")
