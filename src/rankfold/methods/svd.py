"""``svd``: truncated SVD of linear layers, 1x1 convolutions and, as channel SVD, any convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import Metric, eigh_descending, mean_share
from rankfold.factor.matrix import Projection, SVDProjection
from rankfold.factor.moments import Moments
from rankfold.methods._stages import pointwise, spatial
from rankfold.methods.contract import DEPTHWISE, Method, registry, whiten_inputs
from rankfold.records import Blueprint, LayerInfo, LinearSpec, Ranks


@dataclass(frozen=True, slots=True)
class PreparedMatrix:
    """Nested projections of a linear layer's weight or a convolution's channel matrix."""

    projection: Projection
    layer: LayerInfo

    def error(self, ranks: Ranks) -> float:
        """Return the exact relative error of the truncation."""
        return self.projection.relative_error(ranks[0])

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the input-side and the output-side factor."""
        left, right = self.projection.factors(ranks[0])
        if self.layer.kind == "linear":
            return right.squeeze(0), left.squeeze(0)
        groups, kernel = self.layer.groups, self.layer.kernel
        return (
            right.reshape(groups, ranks[0], self.layer.group_in, *kernel),
            left.reshape(groups, self.layer.group_out, ranks[0], *(1,) * len(kernel)),
        )


class MatrixMethod(Method):
    """A factorization of the channel matrix ``(O, I * K)``."""

    __slots__ = ()

    adaptive = True
    balanced = True

    def supports(self, layer: LayerInfo) -> str | None:
        """Every linear layer and every convolution that is not depthwise."""
        return DEPTHWISE if layer.depthwise else None

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of the channel matrix."""
        return (min(layer.group_out, layer.group_in * layer.kernel_numel),)

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return ``I -> r`` (with the layer's kernel) and ``r -> O``."""
        (rank,) = ranks
        if layer.kind == "linear":
            first = LinearSpec(name="input", in_features=layer.in_channels, out_features=rank)
            last = LinearSpec(name="output", in_features=rank, out_features=layer.out_channels, bias=layer.bias)
            return Blueprint((first, last))
        convolution = spatial(layer, "input", layer.in_channels, rank * layer.groups)
        return Blueprint((convolution, pointwise(layer, "output", rank, layer.group_out, bias=layer.bias)))


def in_metric(weight: Tensor, moments: Moments | None) -> Tensor | None:
    """Return the matrix ``(groups, o, i * K)`` in the metric of the data, or None without moments.

    With the patch moment, the truncation minimizes the layer's output error (Eckart-Young in the whitened space).
    Without it, kernel positions are assumed to be independent, each with the channel moment.
    """
    if moments is None:
        return None
    if weight[0, 0, 0].numel() > 1 and moments.patch is not None:
        return weight.flatten(2) @ Metric.of(moments.patch).root
    return whiten_inputs(weight, Metric.of(moments.channel)).flatten(2)


def short_metric(weight: Tensor, moments: Moments | None) -> Tensor | None:
    """Return a matrix with the Gram matrix of the rows of `in_metric`, and no more columns than rows.

    Singular values and left singular vectors depend only on this Gram matrix ``M C M^T``. If there are at most as many
    outputs as inputs, its Cholesky factor replaces ``M C^(1/2)``, so that C needs no eigendecomposition; if it is
    singular to rounding, its root does.
    """
    matrix = weight.flatten(2)
    if moments is None or matrix.shape[1] > matrix.shape[2]:
        return in_metric(weight, moments)
    if weight[0, 0, 0].numel() > 1 and moments.patch is None:  # the channel moment at every kernel position
        flat, moment = weight.flatten(3), moments.channel
        gram = torch.einsum("goik,gij,gpjk->gop", flat, moment, flat)
    else:
        moment = moments.channel if weight[0, 0, 0].numel() == 1 or moments.patch is None else moments.patch
        gram = matrix @ moment @ matrix.mT
    gram += mean_share(moment) * (matrix @ matrix.mT)
    gram = (gram + gram.mT) / 2
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed.any()):
        return factor
    energies, vectors = eigh_descending(gram)
    return vectors * energies.sqrt().unsqueeze(-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SVD(MatrixMethod):
    """Truncated SVD; ranks ``(r,)``.

    For a convolution: a convolution I -> r with the layer's kernel, then a 1x1 convolution r -> O (channel SVD; Zhang,
    Zou, He & Sun 2016, "Accelerating very deep convolutional networks", section 3.1). The error is the least possible
    for a product of rank r (Eckart & Young 1936; Golub & Van Loan, 4th ed., theorem 2.4.8).
    """

    name = "svd"

    def unfoldings(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the channel matrix."""
        return (weight.flatten(2),)

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedMatrix:
        """Keep the matrix; singular vectors are computed when errors or factors are requested."""
        return PreparedMatrix(SVDProjection(weight.flatten(2), short_metric(weight, moments)), layer)


registry.register(SVD, summary="truncated SVD; channel SVD for convolutions")
