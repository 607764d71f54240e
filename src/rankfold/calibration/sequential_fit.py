"""The fit of one layer: the dense weight that restores its output, and the error that remains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.calibration.pairs import PairSums
from rankfold.factor.moments import Moments
from rankfold.factor.refit import PairMoments, choose_ridge, damped, ridge_correction
from rankfold.methods import to_canonical
from rankfold.records import LayerInfo

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The values that cross-validation chooses from."""

EASED = 0.25
"""The share of the chosen ridge that is used. Twofold cross-validation chooses for half of the data and for one layer
at a time, where the pull costs little; but the bias it leaves adds up over the layers, and noise does not. Measured as
the relative squared error of a ResNet-20's logits on 5,000 training images outside the calibration data (72 % of the
parameters removed, 256 images): share 1 gives 0.302, 1/2 0.295, 1/10 0.290; with 64 images, 1/4 gives 0.353 and 1/10
0.361. Four or eight folds, a finer grid, and the smallest ridge within one standard error were no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The result of fitting one layer.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    weight : Tensor
        The fitted dense weight, in torch's layout and the original's data type.
    moments : Moments
        Second moments of the layer's input in the compressed network, with the ridge: the factors nearest to the
        fitted weight in this metric minimize the error on the data and the pull together.
    """

    layer: LayerInfo
    weight: Tensor
    moments: Moments
    _before: Tensor  # the original weight, canonical
    _pairs: PairMoments
    _total: float  # energy of the target output

    def lacking(self, weight: Tensor) -> Tensor:
        """Return what the mean of the output lacks, ``(out,)``, with a weight in torch's layout."""
        pairs = self._pairs
        return (pairs.lacking - (self._change(weight) @ pairs.given.unsqueeze(-1)).squeeze(-1)).flatten()

    def error(self, weight: Tensor) -> float:
        """Return the relative error of the output with a weight in torch's layout, 0..1."""
        return (self._pairs.residual(self._change(weight)) / self._total) ** 0.5 if self._total > 0 else 0.0

    def _change(self, weight: Tensor) -> Tensor:
        return (to_canonical(weight, self.layer).to(self._before) - self._before).flatten(2)


def fit_layer(sums: PairSums, weight: Tensor, ridge: float | None, *, shifts: bool) -> Fit:
    """Fit a layer's weight to what its output lacks.

    Parameters
    ----------
    sums : PairSums
        Sums of at least one pair.
    weight : Tensor
        The original weight.
    ridge : float or None
        As in `Sequential`.
    shifts : bool
        Whether the bias or a BatchNorm adds what the mean lacks, so that the weight need not.
    """
    layer = sums.layer
    pairs, folds = sums.moments(), sums.folds()
    if shifts:
        pairs, folds = pairs.centered(), [fold.centered() for fold in folds]
    before = to_canonical(weight, layer).to(pairs.second)
    if ridge is None:
        ridge = EASED * choose_ridge(folds, RIDGES)
    change = ridge_correction(pairs, ridge)
    if not sums.exact:  # this maps the channels back to the original's, independently of the weight
        change = torch.einsum("goik,gij->gojk", before.flatten(3), change)
    fitted = before + change.reshape(before.shape)
    if layer.transposed:
        fitted = fitted.movedim(1, 2)
    channel, patch = damped(pairs, ridge), None
    if sums.exact and layer.kernel_numel > 1:
        i, k = layer.group_in, layer.kernel_numel
        patch, channel = channel, channel.reshape(-1, i, k, i, k).diagonal(dim1=2, dim2=4).mean(-1)
    return Fit(
        layer=layer,
        weight=fitted.reshape(layer.weight_shape).to(weight),
        moments=Moments(channel=channel, patch=patch, count=pairs.count),
        _before=before,
        _pairs=pairs,
        _total=sums.total / sums.count,
    )
