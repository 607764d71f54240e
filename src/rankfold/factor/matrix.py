"""Low-rank matrix products by projection: truncated SVD and truncated column-pivoted QR.

Both approximate ``M`` by ``Q Q^T M`` with orthonormal columns Q; they differ in the choice of Q. Because the
projection acts on the output side, factors computed in a whitened space need no un-whitening: Q is computed from
``M S`` and applied to ``M``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankfold.factor.cholesky import Cholesky, PivotedCholesky
from rankfold.factor.linalg import (
    SINGLE_ENOUGH,
    balanced_columns,
    balanced_product,
    eigh_descending,
    gram,
    orthonormal,
    tails,
    wide_dtype,
)


@dataclass(frozen=True, slots=True)
class Projection:
    """A nested family of projections of one matrix (a batch of them), one for each rank.

    Parameters
    ----------
    matrix : Tensor
        ``M``, ``(batch, m, n)``.
    seen : Tensor or None
        ``M S``, the matrix in the metric of the data; None if that is the matrix itself.
    """

    matrix: Tensor
    seen: Tensor | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def relative_error(self, rank: int) -> float:
        """Return the relative error of `rank` in the metric, 0..1; 0 for a zero matrix."""
        if "errors" not in self._cache:
            left_out = self._left_out()
            total = left_out[0]
            errors = (left_out / total).clamp(0, 1).sqrt() if total > 0 else torch.zeros_like(left_out)
            self._cache["errors"] = errors.tolist()
        return self._cache["errors"][rank]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        raise NotImplementedError

    def _left_out(self) -> Tensor:
        """Return the squared error of every rank, beginning with rank 0, in `wide_dtype`."""
        raise NotImplementedError

    def _in_metric(self, dtype: torch.dtype) -> Tensor:
        return (self.matrix if self.seen is None else self.seen).to(dtype)


class SVDProjection(Projection):
    """The projections onto the leading singular vectors.

    The error is the least possible for every rank (Eckart & Young 1936; Golub & Van Loan, 4th ed., theorem 2.4.8), in
    the metric ``||(M - M') S||_F``. Singular vectors are eigenvectors of the Gram matrix of the shorter side.
    """

    __slots__ = ()

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        dtype = self.matrix.dtype
        energies, vectors = self._eigen(dtype)
        if dtype == torch.float32 and float(energies[..., rank:].sum()) < SINGLE_ENOUGH**2 * float(energies.sum()):
            dtype = wide_dtype(self.matrix)
            vectors = self._eigen(dtype)[1]
        matrix, vectors = self.matrix.to(dtype), vectors[..., :rank]
        if vectors.shape[1] == matrix.shape[1]:
            right = vectors.mT @ matrix
            return balanced_columns(vectors, right) if self.seen is None else balanced_product(vectors, right)
        if self.seen is None:  # project the rows: columns of M V are sigma_j u_j
            right, left = balanced_columns(vectors, (matrix @ vectors).mT)
            return left.mT, right.mT
        # The columns of M S V are sigma_j u_j: orthogonal up to rounding, not normalized, possibly zero.
        basis = orthonormal(self._in_metric(dtype) @ vectors)
        return balanced_product(basis, basis.mT @ matrix)

    def _left_out(self) -> Tensor:
        return tails(torch.linalg.eigvalsh(self._short_gram(wide_dtype(self.matrix))).flip(-1).clamp_min(0)).sum(0)

    def _eigen(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._cache:
            self._cache[dtype] = eigh_descending(self._short_gram(dtype))
        return self._cache[dtype]

    def _short_gram(self, dtype: torch.dtype) -> Tensor:
        """Return the Gram matrix of the shorter side."""
        seen = self._in_metric(dtype)
        return gram(seen if seen.shape[-2] <= seen.shape[-1] else seen.mT)


@dataclass(frozen=True, slots=True)
class QRProjection(Projection):
    """The projections onto the pivot columns of a column-pivoted QR decomposition ``M P = Q R``.

    The squared error of rank r is the energy of the rows of ``Q^T M`` below the r-th (Golub & Van Loan, 4th ed.,
    section 5.4.2).

    Parameters
    ----------
    decompose : callable
        Returns the pivoted Cholesky decomposition of ``M^T M`` for a matrix ``(m, n)``.
    """

    decompose: Callable[[Tensor], Cholesky] = field(default=PivotedCholesky, kw_only=True)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``.

        The Cholesky rows of ``M^T M`` are R itself. While every matrix leaves out a large enough share, the pivot
        columns are well conditioned and Q takes one triangular solve. Otherwise Q comes from Householder's QR of these
        columns in float64, so that the squared condition number of the Gram matrix does not affect the factors.
        """
        dtype = self.matrix.dtype
        choleskys = self._choleskys(dtype)
        if any(cholesky.left_out(rank) < SINGLE_ENOUGH**2 for cholesky in choleskys):
            dtype = wide_dtype(self.matrix)
            basis = self._basis(dtype, rank)
        elif self.seen is None:
            lefts, rights = zip(*(cholesky.factors(rank) for cholesky in choleskys), strict=True)
            return stacked(lefts), stacked(rights)
        else:
            basis = stacked([cholesky.basis(rank) for cholesky in choleskys])
        return balanced_product(basis, basis.mT @ self.matrix.to(dtype))

    def _left_out(self) -> Tensor:
        seen = self._in_metric(wide_dtype(self.matrix))
        basis = self._basis(seen.dtype, min(seen.shape[1:]))
        return tails((basis.mT @ seen).square().sum(-1)).sum(0)

    def _choleskys(self, dtype: torch.dtype) -> list[Cholesky]:
        if dtype not in self._cache:
            self._cache[dtype] = [self.decompose(matrix) for matrix in self._in_metric(dtype).unbind()]
        return self._cache[dtype]

    def _pivots(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return the column indices, ``(batch, 1, rank)``."""
        return torch.stack([cholesky.pivots(rank) for cholesky in self._choleskys(dtype)]).unsqueeze(1)

    def _basis(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return an orthonormal basis of the pivot columns."""
        seen, pivots = self._in_metric(dtype), self._pivots(dtype, rank)
        return orthonormal(seen.gather(-1, pivots.expand(-1, seen.shape[1], -1)))


class PlainQRProjection(QRProjection):
    """The projections onto the leading columns: QR without pivoting (Golub & Van Loan, section 5.2)."""

    __slots__ = ()

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        basis = self._basis(self.matrix.dtype, rank)
        rows = torch.bmm(basis.mT, self.matrix)
        return balanced_columns(basis, rows) if self.seen is None else balanced_product(basis, rows)

    def _basis(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return an orthonormal basis of the leading columns."""
        return orthonormal(self._in_metric(dtype)[..., :rank])


def stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Return a batch of matrices; a view of a single one."""
    return matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(tuple(matrices))
