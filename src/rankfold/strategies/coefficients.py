"""Softmax coefficients over candidate ranks (RENE, Aghababaei-Harandi & Amini 2024, section 4).

Coefficients, loads and slopes of all layers are one tensor ``(layers, candidates)`` each; a layer with fewer candidates
than the longest row has zeros at its end. The gradients are written out, because an update then takes a tenth of the
time that automatic differentiation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MOMENTUM = 0.9

Loss = Callable[[Tensor], tuple[float, Tensor]]
"""Maps coefficients to a positive value and its slopes with respect to them."""


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of different lengths as one tensor, with zeros at their ends."""
    return pad_sequence(list(rows), batch_first=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoss:
    """The normalized rank loss, eq. 5, to the power of `scale`.

    Parameters
    ----------
    loads : Tensor
        The rank of each candidate, or its cost, divided by the largest one; 0 where there is no candidate.
    gamma, beta : float
        As in eq. 5. `gamma` multiplies the product of eq. 6 and 7 by a constant, so no minimizer depends on it.
    scale : float
        1 in the paper. Because the losses are multiplied, an exponent takes the place of a weight: it multiplies the
        logarithm of the rank loss.
    """

    loads: Tensor
    gamma: float
    beta: float
    scale: float = 1.0

    def __call__(self, coefficients: Tensor) -> tuple[float, Tensor]:
        """Return the loss and its slopes."""
        mean = (coefficients * self.loads).sum(1, keepdim=True)
        total = float((mean**self.beta).sum())
        value = (self.gamma * total) ** self.scale
        return value, value * self.scale * self.beta * mean ** (self.beta - 1) * self.loads / total


def optimize(
    loss: Loss,
    rank_loss: RankLoss,
    *,
    iterations: int,
    lr: float,
    logarithmic: bool = True,
    before: Callable[[int, Tensor, float], bool] | None = None,
) -> Tensor:
    """Return the coefficients after descending the product of a loss and the rank loss (eq. 7 and 9).

    The parameters of the softmax start at 0, so all ranks are equally likely; SGD with Nesterov momentum updates them.

    Parameters
    ----------
    loss : callable
        The loss.
    rank_loss : RankLoss
        The other factor.
    iterations : int
        Number of updates.
    lr : float
        Learning rate.
    logarithmic : bool
        Whether to follow the gradient of the logarithm of the product. It has the same minima and the same direction,
        but its length does not depend on the scale of the weights, so one learning rate suits every network.
    before : callable or None
        ``before(iteration, coefficients, rank_loss)`` is called before each update of the coefficients, and may train
        the weights. If it returns False, the coefficients are not updated.

    Returns
    -------
    Tensor
        The coefficients; those of a layer add up to 1.
    """
    absent = torch.zeros_like(rank_loss.loads).masked_fill(rank_loss.loads == 0, -torch.inf)
    alpha, velocity = torch.zeros_like(absent), torch.zeros_like(absent)
    for number in range(iterations):
        coefficients = (alpha + absent).softmax(1)
        if before is not None and not before(number, coefficients, rank_loss(coefficients)[0]):
            continue
        (value, slopes), (rank, rank_slopes) = loss(coefficients), rank_loss(coefficients)
        total = slopes / value + rank_slopes / rank if logarithmic else slopes * rank + rank_slopes * value
        gradient = coefficients * (total - (coefficients * total).sum(1, keepdim=True))
        velocity = MOMENTUM * velocity + gradient
        alpha = alpha - lr * (gradient + MOMENTUM * velocity)
    return (alpha + absent).softmax(1)


def nested_loss(errors: Sequence[Tensor], *, floor: float = 0.0) -> Loss:
    """Return the decomposition loss, the first factor of eq. 6, of nested candidates.

    If a candidate of lower rank is a truncation of one of higher rank, the inner product of their errors is the squared
    error of the higher rank, and the squared error of a mixture is a quadratic form of its coefficients.

    Parameters
    ----------
    errors : sequence of Tensor
        By layer, the squared error of each candidate, by increasing rank.
    floor : float
        Added to the loss, so that rounding errors of exact candidates do not count.
    """
    rows = padded(errors)
    products = torch.minimum(rows[:, :, None], rows[:, None, :])

    def loss(coefficients: Tensor) -> tuple[float, Tensor]:
        mixed = (products @ coefficients.unsqueeze(2)).squeeze(2)
        return float((coefficients * mixed).sum()) + floor, 2 * mixed

    return loss


def expected_loss(errors: Sequence[Tensor], *, floor: float = 0.0) -> Loss:
    """Return the mean decomposition loss of the candidates, weighted by their coefficients.

    It is at least the loss of the mixture, because the squared error is convex, and equal if one coefficient of each
    layer is 1, as in a plan.

    Parameters
    ----------
    errors, floor
        As for `nested_loss`.
    """
    rows = padded(errors)

    def loss(coefficients: Tensor) -> tuple[float, Tensor]:
        return float((coefficients * rows).sum()) + floor, rows

    return loss
