"""``qr``: truncated column-pivoted QR of linear layers and 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankfold._config import require
from rankfold.factor.cholesky import PivotedCholesky
from rankfold.factor.matrix import PlainQRProjection, QRProjection
from rankfold.factor.moments import Moments
from rankfold.methods.contract import registry
from rankfold.methods.svd import MatrixMethod, PreparedMatrix, in_metric
from rankfold.records import LayerInfo

SMALL = 2 * 10**7
"""Product of the squared number of columns of a matrix and its smaller size, up to which LAPACK is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QR(MatrixMethod):
    """Truncated column-pivoted QR; ranks ``(r,)``.

    The basis of the outputs consists of r columns of the weight (the most important inputs), orthonormalized. Never
    better than `svd` at equal rank. One of the three factorizations of fully connected layers in Kokhazadeh et al.
    (2025), section 2.1.

    Parameters
    ----------
    pivoting : bool
        Whether to select the most important columns. Without pivoting the first columns are used, as in the plain QR of
        Kokhazadeh et al. (2025), section 2.1: faster on small matrices, but in practice the error is never smaller.
    """

    name = "qr"

    pivoting: bool = True

    def __post_init__(self) -> None:
        require(isinstance(self.pivoting, bool), "pivoting", self.pivoting, "true or false")

    def supports(self, layer: LayerInfo) -> str | None:
        """Linear layers and 1x1 convolutions."""
        reason = MatrixMethod.supports(self, layer)
        if reason is None and layer.kernel_numel > 1:
            return "it only supports linear layers and 1x1 convolutions"
        return reason

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedMatrix:
        """Keep the matrix; pivots are chosen when errors or factors are requested."""
        matrix, seen = weight.flatten(2), in_metric(weight, moments)
        if not self.pivoting:
            return PreparedMatrix(PlainQRProjection(matrix, seen), layer)
        m, n = matrix.shape[1:]
        small = weight.device.type == "cpu" and n * n * min(m, n) <= SMALL
        decompose = CompiledCholesky if small else PivotedCholesky
        return PreparedMatrix(QRProjection(matrix, seen, decompose=decompose), layer)


class CompiledCholesky:
    """A pivoted Cholesky decomposition by LAPACK's ``pstrf``, which torch does not have; always of full rank.

    Small matrices take as long as the calls that handle them, so it computes with NumPy's arrays, whose calls are
    faster.
    """

    def __init__(self, matrix: Tensor) -> None:
        multiply, decompose, self._solve = _routines(matrix.dtype)
        self._matrix = matrix.numpy()
        self._total = float(np.vdot(self._matrix, self._matrix))
        gram = multiply(1.0, self._matrix.T)  # the upper triangle; what is below remains zero
        self._triangle, self._pivots, self._rank, _ = decompose(gram, overwrite_a=True)
        self._pivots -= 1
        known = self._triangle[: self._rank]
        self._energies = np.einsum("ij,ij->i", known, known)  # of the rows

    def pivots(self, rank: int) -> Tensor:
        """Return the first `rank` pivots, ``(rank,)``."""
        return torch.from_numpy(self._pivots[:rank]).long()

    def rows(self, rank: int) -> Tensor:
        """Return the first `rank` rows of R, ``(rank, n)``, padded with zeros."""
        return torch.from_numpy(self._rows(rank))

    def left_out(self, rank: int) -> float:
        """Return the share of the trace that the first `rank` rows leave out; 0 beyond the rank of the matrix."""
        if rank > self._rank:
            return 0.0
        return 1 - float(self._energies[:rank].sum()) / self._total

    def basis(self, rank: int) -> Tensor:
        """Return the pivot columns, made orthonormal by the triangle of R, ``(m, rank)``."""
        return torch.from_numpy(self._basis(rank))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the basis and the rows as balanced factors."""
        basis, rows = self._basis(rank), self._rows(rank)
        scale = self._energies[:rank] ** 0.25
        basis *= scale
        rows /= scale[:, None]
        return torch.from_numpy(basis), torch.from_numpy(rows)

    def _basis(self, rank: int) -> Any:
        return self._solve(1.0, self._triangle[:rank, :rank], self._matrix[:, self._pivots[:rank]], side=1)

    def _rows(self, rank: int) -> Any:
        known = min(rank, self._rank)
        rows = np.zeros((rank, len(self._pivots)), self._triangle.dtype)
        rows[:known, self._pivots] = self._triangle[:known]
        return rows


@cache
def _routines(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Return ``syrk``, ``pstrf`` and ``trsm`` for a data type."""
    # They take long to import, and SciPy's stubs do not list their functions.
    blas: Any = import_module("scipy.linalg.blas")
    lapack: Any = import_module("scipy.linalg.lapack")
    if dtype == torch.float32:
        return blas.ssyrk, lapack.spstrf, blas.strsm
    return blas.dsyrk, lapack.dpstrf, blas.dtrsm


registry.register(QR, summary="truncated column-pivoted QR of linear layers")
