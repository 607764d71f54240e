"""``qr``: truncated column-pivoted QR of linear layers and 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold._config import require
from rankfold.factor.matrix import PlainQRProjection, QRProjection
from rankfold.factor.moments import Moments
from rankfold.methods.contract import Method, registry
from rankfold.methods.svd import PreparedMatrix, in_metric, matrix_blueprint
from rankfold.records import Blueprint, LayerInfo, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class QR(Method):
    """Truncated column-pivoted QR; ranks ``(r,)``.

    The output is built from r actual columns of the weight (the inputs that matter most), orthonormalised. Never better
    than `svd` at equal rank; one of the three factorizations of fully connected layers in Kokhazadeh et al. (2025),
    section 2.1.

    Parameters
    ----------
    pivoting : bool
        Whether to choose the columns that matter most. Without it the first columns are taken, which is
        plain QR as in Kokhazadeh et al. (2025), section 2.1: faster on small matrices, its error never smaller in
        practice.
    """

    name = "qr"
    adaptive = True
    balanced = True

    pivoting: bool = True

    def __post_init__(self) -> None:
        require(isinstance(self.pivoting, bool), "pivoting", self.pivoting, "true or false")

    def supports(self, layer: LayerInfo) -> str | None:
        """Linear layers and 1x1 convolutions."""
        if layer.depthwise:
            return "a depthwise convolution has one input channel a group: nothing to factor"
        if layer.kernel_numel > 1:
            return "it is for linear layers and 1x1 convolutions"
        return None

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of the matrix."""
        return (min(layer.group_out, layer.group_in),)

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return ``I -> r`` and ``r -> O``."""
        return matrix_blueprint(layer, ranks[0])

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedMatrix:
        """Take the matrix; pivots are chosen when errors or factors are requested."""
        project = QRProjection if self.pivoting else PlainQRProjection
        return PreparedMatrix(project(weight.flatten(2), in_metric(weight, moments)), layer)


registry.register(QR, summary="truncated column-pivoted QR of linear layers")
