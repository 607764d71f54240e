"""``qr``: truncated column-pivoted QR of linear layers and 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rankfold._config import require
from rankfold.factor.matrix import CompiledQRProjection, PlainQRProjection, QRProjection
from rankfold.factor.moments import Moments
from rankfold.methods.contract import registry
from rankfold.methods.svd import MatrixMethod, PreparedMatrix, in_metric
from rankfold.records import LayerInfo

SMALL = 10**7
"""Product of both sizes of a matrix and the smaller one up to which LAPACK is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QR(MatrixMethod):
    """Truncated column-pivoted QR; ranks ``(r,)``.

    The basis of the outputs consists of r columns of the weight (the most important inputs), orthonormalised. Never
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
        if weight.device.type == "cpu" and m * n * min(m, n) <= SMALL:
            return PreparedMatrix(CompiledQRProjection(matrix, seen, decompose=_Decomposed.of), layer)
        return PreparedMatrix(QRProjection(matrix, seen), layer)


@dataclass(frozen=True, slots=True)
class _Decomposed:
    """A decomposition by LAPACK's ``geqp3``, which torch does not have: Householder vectors and their scales."""

    vectors: Tensor
    scales: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> _Decomposed:
        vectors, _, scales, *_ = _routines(matrix.dtype)[0](matrix.numpy())
        return cls(torch.from_numpy(vectors), torch.from_numpy(scales))

    def basis(self, rank: int) -> Tensor:
        generate = _routines(self.vectors.dtype)[1]
        return torch.from_numpy(generate(self.vectors.numpy()[:, :rank], self.scales.numpy()[:rank])[0])


@cache
def _routines(dtype: torch.dtype) -> tuple[Any, Any]:
    """Return ``geqp3`` and ``orgqr`` for a data type."""
    lapack: Any = import_module("scipy.linalg.lapack")  # takes long, and SciPy's stubs do not list its functions
    return (lapack.sgeqp3, lapack.sorgqr) if dtype == torch.float32 else (lapack.dgeqp3, lapack.dorgqr)


registry.register(QR, summary="truncated column-pivoted QR of linear layers")
