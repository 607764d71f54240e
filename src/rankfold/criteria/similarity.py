"""Criteria that compare filters by their CP factors: ``pabs``, ``csa`` and ``vbd``.

A filter is a sum of rank-one terms, ``sum_r head_r o body_r o tail_r``. All three criteria turn distances between
filters into scores in the same way: the score is the position in `rankfold.factor.subspaces.removal_order`. Before,
filters are sorted by their norm, so that of two indistinguishable filters the smaller is removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rankfold.criteria.contract import Criterion, Filters, registry
from rankfold.factor.subspaces import Subspaces, removal_order


def positions(distances: Tensor, filters: Filters) -> Tensor:
    """Return the position of each filter in the order of removal, ``(out,)`` in float64."""
    by_norm = torch.linalg.vector_norm(filters.flat, dim=1).argsort(stable=True)
    order = by_norm[removal_order(distances[by_norm][:, by_norm]).to(by_norm.device)]
    places = torch.arange(len(order), dtype=torch.float64, device=order.device)
    return torch.empty_like(places).scatter_(0, order, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class PABS(Criterion):
    """Principal angles between the subspaces of factors (Pham, Zniyed & Nguyen 2025, NORTON).

    The distance of two filters is the sum, over head, body and tail, of the norm of the principal angles between the
    column spaces of their factors. It does not depend on scale, sign, order or basis of the terms. At rank 1 it is the
    sum of three angles. The vectors of a kernel of size 3 have three entries, so from rank 3 on, they span the whole
    space, and body and tail of a 3x3 convolution no longer contribute.
    """

    name = "pabs"

    def scores(self, filters: Filters) -> Tensor:
        """Return the positions in the order of removal."""
        return positions(pabs_distances(filters), filters)


def pabs_distances(filters: Filters) -> Tensor:
    """Return the distances of all pairs of filters, ``(out, out)``, in radians; see `PABS`."""
    head, *kernels = map(Subspaces.of, filters.factors)
    distances = head.distances()
    if filters.same_group is not None:  # heads of different groups are orthogonal
        least = torch.minimum(head.dimensions.unsqueeze(0), head.dimensions.unsqueeze(1))
        distances = torch.where(filters.same_group, distances, math.pi / 2 * least.sqrt())
    return sum((kernel.distances() for kernel in kernels), start=distances)


@dataclass(frozen=True, slots=True, kw_only=True)
class CSA(Criterion):
    """Cosine similarity of subspaces: the mean squared cosine of the principal angles between heads.

    At rank 1, it is the squared cosine of the angle, as in the authors' public code. Body and tail do not contribute.
    """

    name = "csa"

    def scores(self, filters: Filters) -> Tensor:
        """Return the positions in the order of removal."""
        overlaps = Subspaces.of(filters.factors[0]).overlaps()
        if filters.same_group is not None:
            overlaps = overlaps * filters.same_group
        return positions(1 - overlaps, filters)


@dataclass(frozen=True, slots=True, kw_only=True)
class VBD(Criterion):
    """Variance-based distance of heads, ``var(x - y) / (var(x) + var(y))``, as in the authors' public code.

    It depends on scale, sign and order of the terms. They are fixed here: the head carries the scale, the largest entry
    of every other vector is positive, and the largest term is the first.
    """

    name = "vbd"

    def scores(self, filters: Filters) -> Tensor:
        """Return the positions in the order of removal."""
        heads = _heads(filters.factors).flatten(1)
        centered = heads - heads.mean(1, keepdim=True)
        products = centered @ centered.mT
        if filters.same_group is not None:
            products = products * filters.same_group
        variances = products.diagonal()
        sums = variances.unsqueeze(0) + variances.unsqueeze(1)
        ratios = (1 - 2 * products / torch.where(sums > 0, sums, 1.0)).clamp_min(0)
        return positions(torch.where(sums > 0, ratios, 0.0).fill_diagonal_(0), filters)


def _heads(factors: list[Tensor]) -> Tensor:
    """Return the heads ``(out, in / groups, rank)`` with scale, sign and order of the terms fixed."""
    head, *kernels = factors
    norms = [torch.linalg.vector_norm(kernel, dim=1, keepdim=True) for kernel in kernels]
    signs = [_largest(kernel).sign() for kernel in kernels]
    scaled = reduce(torch.mul, [*norms, *signs], head)
    order = torch.linalg.vector_norm(scaled, dim=1).argsort(dim=1, descending=True, stable=True)
    return scaled.gather(2, order.unsqueeze(1).expand_as(scaled))


def _largest(vectors: Tensor) -> Tensor:
    """Return the entry of largest magnitude of vectors ``(out, size, rank)``, ``(out, 1, rank)``."""
    return vectors.gather(1, vectors.abs().argmax(1, keepdim=True))


registry.register(PABS, summary="principal angles between subspaces of CP factors (NORTON)")
registry.register(CSA, summary="cosine similarity of the subspaces of CP heads")
registry.register(VBD, summary="variance-based distance of CP heads")
