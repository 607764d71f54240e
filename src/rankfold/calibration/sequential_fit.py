"""The fitting of one layer: the dense weight that brings its output back, and what that leaves."""

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
"""What cross-validation chooses from."""

EASED = 0.25
"""The share of the chosen ridge that is used. Twofold cross-validation chooses for half of the data, and for this layer
alone, where the pull costs little; but what it leaves undone adds up over the layers, and noise does not. Judged by the
relative squared error of a ResNet-20's logits on 5,000 training images that were not in the calibration data (72 % of
the parameters gone, 256 images): share 1 0.302, 1/2 0.295, 1/10 0.290; with 64 images 1/4 0.353, 1/10 0.361. Four or
eight folds, a finer grid, and the smallest ridge within one standard error were no better than these shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fitting one layer has found.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    weight : Tensor
        The fitted dense weight, in torch's layout and the original's data type.
    moments : Moments
        Of the layer's input in the compressed network, with the ridge: in this metric the factors nearest to the fitted
        weight are the best for the data and the pull together.
    """

    layer: LayerInfo
    weight: Tensor
    moments: Moments
    _before: Tensor  # the original weight, canonical
    _pairs: PairMoments
    _total: float  # energy of what the output should be

    def lacking(self, weight: Tensor) -> Tensor:
        """Return what the mean of the output lacks with a weight in torch's layout, ``(out,)``."""
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
        Over the data, at least one pair.
    weight : Tensor
        The original weight.
    ridge : float or None
        As in `Sequential`.
    shifts : bool
        Whether bias or BatchNorm will add what the mean lacks, so that the weight need not.
    """
    layer, exact = sums.layer, sums.exact
    pairs, folds = sums.moments(), sums.folds()
    if shifts:
        pairs, folds = pairs.centred(), [fold.centred() for fold in folds]
    before = to_canonical(weight, layer).to(pairs.second)
    if ridge is None:
        ridge = EASED * choose_ridge(folds, RIDGES)
    correction = ridge_correction(pairs, ridge)
    return Fit(
        layer=layer,
        weight=_from_canonical(_corrected(before, correction, exact=exact), layer).to(weight),
        moments=_as_moments(damped(pairs, ridge), pairs.count, layer, exact=exact),
        _before=before,
        _pairs=pairs,
        _total=sums.total / sums.count,
    )


def _corrected(weight: Tensor, correction: Tensor, *, exact: bool) -> Tensor:
    """Return the fitted canonical weight ``(groups, o, i, *kernel)``."""
    if exact:
        return weight + correction.reshape(weight.shape)
    # The channels are mapped back to the original's as well as may be, whatever the weight.
    flat = weight.flatten(3)
    return (flat + torch.einsum("goik,gij->gojk", flat, correction)).reshape(weight.shape)


def _as_moments(second: Tensor, count: int, layer: LayerInfo, *, exact: bool) -> Moments:
    """Return second moments of the input in the compressed network as factorizations take them."""
    if not exact or layer.kernel_numel == 1:
        return Moments(channel=second, patch=None, count=count)
    i, k = layer.group_in, layer.kernel_numel
    channel = second.reshape(-1, i, k, i, k).diagonal(dim1=2, dim2=4).mean(-1)
    return Moments(channel=channel, patch=second, count=count)


def _from_canonical(weight: Tensor, layer: LayerInfo) -> Tensor:
    """Return ``(groups, o, i, *kernel)`` in torch's layout."""
    if layer.transposed:
        weight = weight.movedim(1, 2)
    return weight.reshape(layer.weight_shape)
