"""Mixtures of candidate factorizations: their errors, their slopes, and the training of their factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor

from rankfold import methods
from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks
from rankfold.strategies.coefficients import MOMENTUM, padded
from rankfold.strategies.problem import Problem
from rankfold.strategies.workbench import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The ranks of one layer that are searched.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    method : Method
        Its factorization.
    limits : tuple of int
        The largest useful rank in each position.
    low, high : int
        The smallest and the largest value.
    position : int or None
        The position that a value belongs to; None for all of them.
    others : tuple of int
        The ranks in the other positions, if there is a position.
    """

    layer: LayerInfo
    method: Method
    limits: Ranks
    low: int
    high: int
    position: int | None = None
    others: Ranks = ()

    def at(self, position: int, others: Ranks) -> Axis:
        """Return the ranks of one position, with the others fixed."""
        limit = self.limits[position]
        low, high = min(self.low, limit), min(self.high, limit)
        return replace(self, position=position, others=others, low=low, high=high)

    def ranks(self, value: int) -> Ranks:
        """Return the setting of a value."""
        if self.position is None:
            return tuple(min(value, limit) for limit in self.limits)
        return tuple(value if i == self.position else rank for i, rank in enumerate(self.others))


def factors_of(problem: Problem, axis: Axis, ranks: Ranks) -> tuple[Tensor, ...]:
    """Return the factors of a candidate: truncations of one decomposition of the layer."""
    return methods.prepare(axis.method, problem.weight(axis.layer.name), axis.layer).factorize(ranks)


def composed(axis: Axis, ranks: Ranks, factors: Sequence[Tensor]) -> Tensor:
    """Return a candidate's weight in torch's layout."""
    return methods.compose(axis.method.blueprint(axis.layer, ranks), axis.layer, factors)


class Mixtures:
    """The mixtures of all layers, whose candidates are composed one at a time.

    Parameters
    ----------
    problem : Problem
        The strategy's input.
    axes, values : sequence
        The layers, and the candidates of each.
    lr : float
        Learning rate of the factors, if they are trained.
    norm : float or None
        Largest norm of the gradient of a layer's factors.
    """

    def __init__(
        self,
        problem: Problem,
        axes: Sequence[Axis],
        values: Sequence[Sequence[int]],
        *,
        lr: float = 0.0,
        norm: float | None = None,
    ) -> None:
        self.problem, self.axes, self.norm = problem, axes, norm
        self.settings = [[axis.ranks(v) for v in row] for axis, row in zip(axes, values, strict=True)]
        self.factors = [
            [[f.float().clone().requires_grad_() for f in factors_of(problem, axis, ranks)] for ranks in row]
            for axis, row in zip(axes, self.settings, strict=True)
        ]
        parameters = [f for layer in self.factors for candidate in layer for f in candidate]
        self._optimizer = torch.optim.SGD(parameters, lr=lr or 1.0, momentum=MOMENTUM, nesterov=True)
        self._batches: Iterator[Batch] | None = None

    def candidates(self, index: int) -> Iterator[Tensor]:
        """Yield the weights of a layer's candidates, one at a time."""
        for ranks, factors in zip(self.settings[index], self.factors[index], strict=True):
            with torch.no_grad():
                yield composed(self.axes[index], ranks, factors)

    def mixture(self, index: int, coefficients: Tensor) -> Tensor:
        """Return a layer's mixture."""
        weights = zip(coefficients.tolist(), self.candidates(index), strict=False)  # zeros at the end
        return sum((p * weight for p, weight in weights), start=torch.zeros(()))

    def train(self, coefficients: Tensor, rank_loss: float) -> None:
        """Update the factors by the gradient of eq. 6 (eq. 8), with the coefficients fixed."""
        self._optimizer.zero_grad()
        for i, axis in enumerate(self.axes):
            error = self._error(i, coefficients[i])
            weights = coefficients[i].tolist()
            for p, ranks, factors in zip(weights, self.settings[i], self.factors[i], strict=False):
                with torch.enable_grad():
                    weight = composed(axis, ranks, factors)
                weight.backward(-2 * p * rank_loss * error)
            if self.norm is not None:
                torch.nn.utils.clip_grad_norm_([f for c in self.factors[i] for f in c], self.norm)
        self._optimizer.step()

    def decomposition(self, coefficients: Tensor) -> tuple[float, Tensor]:
        """Return the decomposition loss, the first factor of eq. 6, and its slopes."""
        total, slopes = 0.0, list[Tensor]()
        for i in range(len(self.axes)):
            error = self._error(i, coefficients[i])
            total += float(error.double().square().sum())
            slopes.append(torch.stack([-2 * (error * weight).sum() for weight in self.candidates(i)]))
        return total, padded(slopes).to(coefficients)

    def validation(self, coefficients: Tensor) -> tuple[float, Tensor]:
        """Return the loss of the network on the next labeled batch (eq. 7), and its slopes."""
        bench = self.problem.workbench
        assert bench is not None
        if self._batches is None:
            self._batches = cycle(bench.batches())
        mixed = {axis.layer.name: self.mixture(i, coefficients[i]).requires_grad_() for i, axis in enumerate(self.axes)}
        with torch.enable_grad():
            loss = bench.loss(mixed, next(self._batches))
        gradients = torch.autograd.grad(loss, list(mixed.values()))
        slopes = [
            torch.stack([(gradient * weight).sum() for weight in self.candidates(i)])
            for i, gradient in enumerate(gradients)
        ]
        return float(loss.detach()), padded(slopes).to(coefficients)

    def diverged(self) -> Axis | None:
        """Return the first layer whose factors are not finite."""
        finite = (all(bool(f.isfinite().all()) for c in layer for f in c) for layer in self.factors)
        return next((axis for axis, fine in zip(self.axes, finite, strict=True) if not fine), None)

    def _error(self, index: int, coefficients: Tensor) -> Tensor:
        weight = self.problem.weight(self.axes[index].layer.name).float()
        return weight - self.mixture(index, coefficients)
