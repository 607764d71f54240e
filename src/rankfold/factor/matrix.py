"""Low-rank matrix products by projection: truncated SVD and truncated column-pivoted QR.

Both approximate ``M`` by ``Q Q^T M`` with orthonormal columns Q; they differ in the choice of Q. Because the
projection acts on the output side, factors found in a whitened space need no un-whitening: Q is computed from ``M S``
and applied to ``M``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rankfold.factor.cholesky import PivotedCholesky
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


class Projection(Protocol):
    """A nested family of projections of one matrix (a batch of them), one for each rank."""

    def relative_error(self, rank: int) -> float:
        """Return the relative error of `rank` in the metric, 0..1; 0 for a zero matrix."""
        ...

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        ...


@dataclass(frozen=True, slots=True)
class SVDProjection:
    """The projections onto the leading singular vectors.

    The error is the least possible for every rank (Eckart & Young 1936; Golub & Van Loan, 4th ed., theorem 2.4.8), in
    the metric ``||(M - M') S||_F``. Singular vectors are eigenvectors of the Gram matrix of the shorter side.

    Parameters
    ----------
    matrix : Tensor
        ``M``, ``(batch, m, n)``.
    seen : Tensor or None
        ``M S``, the matrix in the metric; None if that is the matrix itself.
    """

    matrix: Tensor
    seen: Tensor | None = None
    _found: dict[Any, Any] = field(default_factory=dict, repr=False)

    def relative_error(self, rank: int) -> float:
        """Return the root of the energy of the singular values left out."""
        if "errors" not in self._found:
            gram_matrix = _short_gram(_seen(self, wide_dtype(self.matrix)))
            values = torch.linalg.eigvalsh(gram_matrix).flip(-1).clamp_min(0)
            self._found["errors"] = relative_errors(tails(values).sum(0))
        return self._found["errors"][rank]

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
        # Columns of M S V are sigma_j u_j: orthogonal but for rounding, not normalised, perhaps zero.
        basis = orthonormal(_seen(self, dtype) @ vectors)
        return balanced_product(basis, basis.mT @ matrix)

    def _eigen(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._found:
            self._found[dtype] = eigh_descending(_short_gram(_seen(self, dtype)))
        return self._found[dtype]


def _seen(projection: SVDProjection | QRProjection, dtype: torch.dtype) -> Tensor:
    """Return the matrix in the metric, in this data type."""
    seen = projection.matrix if projection.seen is None else projection.seen
    return seen if seen.dtype == dtype else seen.to(dtype)


def _short_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrix of the shorter side."""
    return gram(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT)


def relative_errors(left_out: Tensor) -> list[float]:
    """Return relative errors, 0..1, from squared ones that begin with the whole energy."""
    total = left_out[0]
    return ((left_out / total).clamp(0, 1).sqrt() if total > 0 else torch.zeros_like(left_out)).tolist()


@dataclass(frozen=True, slots=True)
class QRProjection:
    """The projections onto the pivot columns of a column-pivoted QR decomposition ``M P = Q R``.

    The squared error of rank r is the energy of the rows of ``Q^T M`` below the r-th (Golub & Van Loan, 4th ed.,
    section 5.4.2).

    Parameters
    ----------
    matrix, seen : Tensor
        As for `SVDProjection`.
    """

    matrix: Tensor
    seen: Tensor | None = None
    _found: dict[Any, Any] = field(default_factory=dict, repr=False)

    def relative_error(self, rank: int) -> float:
        """Return the root of the energy of the rows left out."""
        if "errors" not in self._found:
            seen = _seen(self, wide_dtype(self.matrix))
            basis = self._basis(seen.dtype, min(seen.shape[1:]))
            self._found["errors"] = relative_errors(tails((basis.mT @ seen).square().sum(-1)).sum(0))
        return self._found["errors"][rank]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``.

        The Cholesky rows of ``M^T M`` are R itself. As long as much is left out of every matrix, the pivot columns are
        well conditioned and Q is one triangular solve away; else it comes from Householder's QR of these columns in
        float64, so that the Gram matrix's squared condition does not touch the factors.
        """
        choleskys = self._choleskys(self.matrix.dtype)
        rows, totals = torch.stack([c.rows(rank) for c in choleskys]), [c.total for c in choleskys]
        kept = rows.square().sum((-1, -2)).tolist()
        enough = all(t > 0 and t - k >= SINGLE_ENOUGH**2 * t for t, k in zip(totals, kept, strict=True))
        if enough and not any(c.exhausted for c in choleskys):
            pivots = self._pivots(self.matrix.dtype, rank)
            triangle = rows.gather(-1, pivots.expand(-1, rank, -1))
            seen = _seen(self, rows.dtype)
            columns = seen.gather(-1, pivots.expand(-1, seen.shape[1], -1))
            basis = torch.linalg.solve_triangular(triangle, columns, upper=True, left=False)
            if self.seen is None:
                return balanced_columns(basis, rows)
            return balanced_product(basis, basis.mT @ self.matrix)
        dtype = wide_dtype(self.matrix)
        basis = self._basis(dtype, rank)
        return balanced_product(basis, basis.mT @ self.matrix.to(dtype))

    def _choleskys(self, dtype: torch.dtype) -> list[PivotedCholesky]:
        if dtype not in self._found:
            self._found[dtype] = [PivotedCholesky(g) for g in gram(_seen(self, dtype).mT).unbind()]
        return self._found[dtype]

    def _pivots(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return ``(batch, 1, rank)``."""
        return torch.stack([cholesky.pivots(rank) for cholesky in self._choleskys(dtype)]).unsqueeze(1)

    def _basis(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return an orthonormal basis of the pivot columns."""
        seen, pivots = _seen(self, dtype), self._pivots(dtype, rank)
        return orthonormal(seen.gather(-1, pivots.expand(-1, seen.shape[1], -1)))


class PlainQRProjection(QRProjection):
    """The projections onto the first columns as they come: QR without pivoting (Golub & Van Loan, section 5.2)."""

    __slots__ = ()

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return balanced factors ``(batch, m, rank)`` and ``(batch, rank, n)``."""
        basis = self._basis(self.matrix.dtype, rank)
        rows = torch.bmm(basis.mT, self.matrix)
        return balanced_columns(basis, rows) if self.seen is None else balanced_product(basis, rows)

    def _basis(self, dtype: torch.dtype, rank: int) -> Tensor:
        """Return an orthonormal basis of the first columns."""
        return orthonormal(_seen(self, dtype)[..., :rank])
