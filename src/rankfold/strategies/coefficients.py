"""Softmax coefficients over candidate ranks (RENE, Aghababaei-Harandi & Amini 2024, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoss:
    """The normalised rank loss, eq. 5, to the power of `scale`.

    Parameters
    ----------
    loads : sequence of Tensor
        By layer, the rank of each candidate, or its cost, divided by the largest one.
    gamma, beta : float
        As in eq. 5. `gamma` multiplies the product of eq. 6 and 7 by a constant, so no minimiser depends on it.
    scale : float
        1 in the paper. Because the losses are multiplied, an exponent takes the place of a weight: it multiplies the
        logarithm of the rank loss.
    """

    loads: Sequence[Tensor]
    gamma: float
    beta: float
    scale: float = 1.0

    def __call__(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Return the loss of coefficients, by layer, that each add up to 1."""
        parts = [(p @ load) ** self.beta for p, load in zip(coefficients, self.loads, strict=True)]
        return (self.gamma * torch.stack(parts).sum()) ** self.scale


def optimise(
    loss: Callable[[Sequence[Tensor]], Tensor],
    rank_loss: RankLoss,
    *,
    iterations: int,
    lr: float,
    logarithmic: bool = True,
    before: Callable[[int, Sequence[Tensor], float], bool] | None = None,
) -> list[Tensor]:
    """Return the coefficients after descending the product of a loss and the rank loss (eq. 7 and 9).

    The parameters of the softmax start at 0, so all ranks are equally likely; SGD with Nesterov momentum updates them.

    Parameters
    ----------
    loss : callable
        Maps the coefficients of all layers to a positive scalar.
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
    list of Tensor
        By layer, one coefficient per candidate; they add up to 1.
    """
    alphas = [torch.zeros_like(load).requires_grad_() for load in rank_loss.loads]
    optimizer = torch.optim.SGD(alphas, lr=lr, momentum=MOMENTUM, nesterov=True)
    for number in range(iterations):
        if before is not None:
            fixed = [alpha.detach().softmax(0) for alpha in alphas]
            if not before(number, fixed, float(rank_loss(fixed))):
                continue
        optimizer.zero_grad()
        with torch.enable_grad():
            coefficients = [alpha.softmax(0) for alpha in alphas]
            parts = loss(coefficients), rank_loss(coefficients)
            total = torch.log(parts[0]) + torch.log(parts[1]) if logarithmic else parts[0] * parts[1]
        total.backward()
        optimizer.step()
    return [alpha.detach().softmax(0) for alpha in alphas]


def nested_loss(errors: Sequence[Tensor], *, floor: float = 0.0) -> Callable[[Sequence[Tensor]], Tensor]:
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
    products = [torch.minimum(row[:, None], row[None, :]) for row in errors]

    def loss(coefficients: Sequence[Tensor]) -> Tensor:
        parts = [p @ product @ p for p, product in zip(coefficients, products, strict=True)]
        return torch.stack(parts).sum() + floor

    return loss
