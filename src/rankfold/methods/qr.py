"""``qr``: truncated column-pivoted QR of linear layers and 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold._config import require
from rankfold.factor.matrix import PlainQRProjection, QRProjection
from rankfold.factor.moments import Moments
from rankfold.methods.contract import registry
from rankfold.methods.svd import MatrixMethod, PreparedMatrix, in_metric
from rankfold.records import LayerInfo


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
        project = QRProjection if self.pivoting else PlainQRProjection
        return PreparedMatrix(project(weight.flatten(2), in_metric(weight, moments)), layer)


registry.register(QR, summary="truncated column-pivoted QR of linear layers")
