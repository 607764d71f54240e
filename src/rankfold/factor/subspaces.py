"""Principal angles between subspaces, distances between all pairs, and the order in which similar items are removed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import double

CHUNK = 2**26
"""Size in bytes of the largest temporary tensor; a few of them exist at a time."""

TIE = 1e-10
"""Distances, and sums of distances, that differ by less count as equal: rounding has this effect."""


@dataclass(frozen=True, slots=True)
class Subspaces:
    """Subspaces of one space, given by orthonormal bases. Create them with `Subspaces.of`.

    Parameters
    ----------
    bases : Tensor
        ``(n, m, k)`` in float64; the columns after the dimension of a subspace are 0.
    dimensions : Tensor
        ``(n,)``, integers.
    """

    bases: Tensor
    dimensions: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Subspaces:
        """Return the column spaces of matrices ``(n, m, r)`` of any rank; the entries must be finite.

        Columns are scaled to norm 1 first, so that the result does not depend on their scale. A direction counts if its
        singular value exceeds the largest one times the rounding error and the size, as in `scipy.linalg.orth`.
        """
        wide = double(columns)
        wide = wide / _nonzero(wide.abs().amax(1, keepdim=True))  # so that the norms do not overflow
        wide = wide / _nonzero(torch.linalg.vector_norm(wide, dim=1, keepdim=True))
        left, values, _ = torch.linalg.svd(wide, full_matrices=False)
        least = torch.finfo(wide.dtype).eps * max(wide.shape[1:])
        counted = (values > least * values[:, :1]) & (values > 0)
        return cls(left * counted.unsqueeze(1), counted.sum(1))

    def angles(self, i: Tensor, j: Tensor) -> Tensor:
        """Return the principal angles of pairs of subspaces, the smallest first.

        Angles above 45 degrees come from the cosines, the singular values of ``Q_i^T Q_j`` (Bjorck & Golub 1973,
        "Numerical methods for computing angles between linear subspaces", theorem 1). Smaller ones come from the sines,
        the singular values of ``Q_j - Q_i Q_i^T Q_j``, because the cosine of a small angle is 1 to rounding (Knyazev &
        Argentati 2002, "Principal angles between subspaces in an A-based scalar product", algorithm 2.1).

        Parameters
        ----------
        i, j : Tensor
            Indices of the subspaces ``(p,)``.

        Returns
        -------
        Tensor
            ``(p, k)`` in radians, 0..pi/2. Entries after the smaller of the two dimensions are 0.
        """
        parts = [self._angles(self.bases[a].mT @ self.bases[b], a, b) for a, b in self._parts(i, j)]
        return torch.cat(parts) if parts else self.bases.new_zeros(0, self.bases.shape[2])

    def distances(self) -> Tensor:
        """Return the distances of all pairs, the norm of their principal angles.

        This is the length of the shortest path between two subspaces of the same dimension (Edelman, Arias & Smith
        1998, "The geometry of algorithms with orthogonality constraints", section 4.3). If one contains the other, the
        distance is 0.

        Returns
        -------
        Tensor
            ``(n, n)``, symmetric with zeros on the diagonal; radians, at most ``pi / 2 * sqrt(k)``.
        """
        n = len(self.bases)
        result = self.bases.new_zeros(n, n)
        for start, products in self._products():
            i, j = torch.triu_indices(products.shape[0], products.shape[1], offset=1, device=result.device)
            angles = self._angles(products[i, j], i + start, j + start)
            result[i + start, j + start] = torch.linalg.vector_norm(angles, dim=1)
        return result + result.mT

    def overlaps(self) -> Tensor:
        """Return the mean squared cosine of the principal angles of all pairs, ``(n, n)``, 0..1.

        It is 1 for a pair of which one contains the other. No angle needs to be computed: the sum of the squared
        cosines is ``||Q_i^T Q_j||^2``.
        """
        n = len(self.bases)
        result = self.bases.new_zeros(n, n)
        for start, products in self._products():
            result[start : start + len(products), start:] = products.square().sum((2, 3))
        result = result.triu(1)
        least = torch.minimum(self.dimensions.unsqueeze(0), self.dimensions.unsqueeze(1))
        shares = (result + result.mT) / least.clamp_min(1)
        return shares.clamp_max(1).masked_fill(least == 0, 1).fill_diagonal_(1)

    def _products(self) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of the products ``Q_i^T Q_j``, ``(rows, n - start, k, k)``, for i and j from start."""
        n, m, k = self.bases.shape
        rows = max(1, CHUNK // (8 * n * k * k))
        flat = self.bases.mT.reshape(n * k, m)
        for start in range(0, n, rows):
            block = flat[start * k : (start + rows) * k] @ flat[start * k :].mT
            yield start, block.reshape(-1, k, n - start, k).transpose(1, 2)

    def _parts(self, i: Tensor, j: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs in parts for which the bases of one side fit in a chunk."""
        size = max(1, CHUNK // (8 * self.bases.shape[1] * self.bases.shape[2]))
        yield from zip(i.split(size), j.split(size), strict=True)

    def _angles(self, products: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Return the principal angles of pairs from their products ``(p, k, k)``."""
        swap = self.dimensions[i] < self.dimensions[j]  # the sines need the larger subspace first
        products = torch.where(swap[:, None, None], products.mT, products)
        i, j = torch.where(swap, j, i), torch.where(swap, i, j)
        m, k = self.bases.shape[1:]
        place = torch.arange(k, device=i.device)
        cosines = _singular_values(products)
        angles = cosines.clamp_max(1).arccos()
        # Subspaces whose dimensions add up to more than m intersect: these angles are exactly 0.
        first = (self.dimensions[i] + self.dimensions[j] - m).unsqueeze(1)
        last = self.dimensions[j].unsqueeze(1)
        open_ = (place >= first) & (place < last)
        small = open_ & (cosines > math.sqrt(0.5))
        wanted = small.any(1).nonzero().squeeze(1)
        for at, _ in self._parts(wanted, wanted):
            smaller = self.bases[j[at]]
            sines = _singular_values(smaller - self.bases[i[at]] @ products[at]).clamp_max(1)
            ascending = sines.gather(1, (last[at] - 1 - place).clamp_min(0))  # zeros of the padding are at the end
            angles[at] = torch.where(small[at], ascending.arcsin(), angles[at])
        return angles * open_


def _nonzero(sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def _singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values ``(p, min(a, b))`` of ``(p, a, b)``, the largest first."""
    if min(matrices.shape[1:]) == 1:
        return torch.linalg.vector_norm(matrices, dim=(1, 2)).unsqueeze(1)
    return torch.linalg.svdvals(matrices)


def removal_order(distances: Tensor) -> Tensor:
    """Return the order in which redundant items are removed one by one, the most redundant first.

    Of the closest pair, the item with the smaller sum of distances to all remaining items is removed (Pham, Zniyed &
    Nguyen 2025, "Enhanced network compression through tensor decompositions and pruning"). Of equally close pairs the
    first is taken, and of items with equal sums the earlier one, up to rounding (`TIE`).

    Parameters
    ----------
    distances : Tensor
        ``(n, n)``, symmetric, nonnegative.

    Returns
    -------
    Tensor
        Indices ``(n,)``; the last item is never removed.
    """
    n = len(distances)
    exact = distances.clone().fill_diagonal_(0)
    away = (distances / TIE).round().fill_diagonal_(math.inf)  # distances in units of `TIE`; infinite if removed
    nearest = away.min(1)
    least, partner = nearest.values, nearest.indices
    sums = exact.sum(1)
    order = list[int]()
    for _ in range(n - 1):
        one = int(least.argmin())
        other = int(partner[one])
        one, other = min(one, other), max(one, other)
        removed = one if float(sums[one] - sums[other]) <= TIE else other
        order.append(removed)
        sums -= exact[removed]
        away[removed] = math.inf
        away[:, removed] = math.inf
        least[removed] = math.inf
        stale = ((partner == removed) & (least < math.inf)).nonzero().squeeze(1)
        if len(stale) and len(order) < n - 1:
            again = away[stale].min(1)
            least[stale], partner[stale] = again.values, again.indices
    (last,) = set(range(n)) - set(order)
    return torch.tensor([*order, last])
