"""Low-rank matrix products by projection: truncated SVD and truncated column-pivoted QR.

Both approximate ``M`` by ``Q Q^T M`` with orthonormal columns Q; they differ in the choice of Q. Because the
projection acts on the output side, factors found in a whitened space need no un-whitening: Q is computed from ``M S``
and applied to ``M``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import balanced_product, eigh_descending, gram, tails


@dataclass(frozen=True, slots=True)
class Projection:
    """A nested family of projections of one matrix (a batch of them), one for each rank.

    Parameters
    ----------
    matrix : Tensor
        ``(batch, m, n)``.
    span : Tensor
        ``(batch, m, k)``, ``k = min(m, n)``; its first r columns span the range of the projection of rank r.
    orthonormal : bool
        Whether these columns are orthonormal already.
    left_out : Tensor
        ``(k + 1,)``, squared error of every rank in the metric, summed over the batch.
    total : float
        Squared norm of the matrix in the metric.
    """

    matrix: Tensor
    span: Tensor
    orthonormal: bool
    left_out: Tensor
    total: float

    def relative_error(self, rank: int) -> float:
        """Return the relative error of `rank` in the metric, 0..1; 0 for a zero matrix."""
        return float((self.left_out[rank] / self.total).clamp(0, 1).sqrt()) if self.total > 0 else 0.0

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        span = self.span[..., :rank]
        basis = span if self.orthonormal else torch.linalg.qr(span).Q
        return balanced_product(basis, basis.mT @ self.matrix)


def svd_projection(matrix: Tensor, seen: Tensor | None = None) -> Projection:
    """Return the projections onto the leading left singular vectors.

    The error is the least possible for every rank (Eckart-Young theorem), in the metric ``||(M - M') S||_F``.

    Parameters
    ----------
    matrix : Tensor
        ``M``, ``(batch, m, n)``.
    seen : Tensor or None
        ``M S``, the matrix in the metric; the matrix itself if None.
    """
    seen = matrix if seen is None else seen
    m, n = seen.shape[-2:]
    total = float(seen.square().sum())
    if m <= n:
        energies, basis = eigh_descending(gram(seen))
        return Projection(matrix, basis, True, tails(energies).sum(0), total)
    energies, right = eigh_descending(gram(seen.mT))
    # Columns of M S V are sigma_j u_j: orthogonal but for rounding, not normalised, perhaps zero. The QR that mends
    # this is left to `factors`, which needs the first r columns only.
    return Projection(matrix, seen @ right, False, tails(energies).sum(0), total)


def qr_projection(matrix: Tensor, seen: Tensor | None = None) -> Projection:
    """Return the projections onto the pivot columns of a column-pivoted QR decomposition ``M P = Q R``.

    The squared error of rank r is the energy of the rows of ``Q^T M`` below the r-th (Golub & Van Loan, 4th ed.,
    section 5.4.2). Pivots are chosen greedily by the largest remaining column norm on the Gram matrix (which costs the
    same as a pivoted Cholesky decomposition); Q itself comes from an unpivoted QR of the pivoted columns, so the Gram
    matrix's squared condition does not touch the factors.

    Parameters
    ----------
    matrix, seen : Tensor
        As for `svd_projection`.
    """
    seen = matrix if seen is None else seen
    pivots = _pivots(gram(seen.mT), min(seen.shape[-2:]))
    basis = torch.linalg.qr(seen.gather(-1, pivots.unsqueeze(-2).expand(-1, seen.shape[-2], -1))).Q
    rows = (basis.mT @ seen).square().sum(-1)
    return Projection(matrix, basis, True, tails(rows).sum(0), float(seen.square().sum()))


def _pivots(gram_matrix: Tensor, count: int) -> Tensor:
    """Return the first `count` pivots ``(batch, count)`` of a pivoted Cholesky decomposition of ``(batch, n, n)``."""
    batch, n, _ = gram_matrix.shape
    diagonal = gram_matrix.diagonal(dim1=-2, dim2=-1).clone()
    columns = gram_matrix.new_zeros(batch, count, n)
    pivots = torch.zeros(batch, count, dtype=torch.long, device=gram_matrix.device)
    rows = torch.arange(batch, device=gram_matrix.device)
    for j in range(count):
        pivot = diagonal.argmax(-1)
        pivots[:, j] = pivot
        column = gram_matrix[rows, pivot] - (columns[rows, :j, pivot].unsqueeze(1) @ columns[:, :j]).squeeze(1)
        size = diagonal[rows, pivot].clamp_min(torch.finfo(diagonal.dtype).tiny).sqrt()
        columns[:, j] = column / size.unsqueeze(-1)
        diagonal = (diagonal - columns[:, j].square()).clamp_min(0)
        diagonal[rows.unsqueeze(-1), pivots[:, : j + 1]] = -1.0  # never the same pivot twice
    return pivots
