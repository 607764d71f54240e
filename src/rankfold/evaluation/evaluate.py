"""Metrics: any callable that measures a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from rankfold._turns import in_turn
from rankfold.errors import MetricError
from rankfold.inventory import measure
from rankfold.inventory.wrappers import require_module


class Metric:
    """A callable that measures a model, with the attributes that reports use.

    Every function that takes a metric accepts any callable; see `as_metric`.

    Attributes
    ----------
    name : str
        The name in reports, such as ``"top-1"``.
    higher_is_better : bool
        Whether a better model has a higher value.
    samples : int or None
        Number of samples in the last measurement; None if they are not counted.
    """

    name: str
    higher_is_better: bool = True
    samples: int | None = None

    def __call__(self, model: nn.Module, /) -> Any:
        """Return the value for the model."""
        raise NotImplementedError

    @property
    def function(self) -> Callable[[nn.Module], Any]:
        """The callable that measures: this object, or the argument of `as_metric`."""
        return self

    def drop(self, before: float, after: float) -> float:
        """Return by how much `after` is worse than `before`, in the metric's unit; negative if it is better."""
        return before - after if self.higher_is_better else after - before


class _Function(Metric):
    """A metric that wraps a callable."""

    def __init__(self, function: Callable[[nn.Module], Any]) -> None:
        name = getattr(function, "name", None) or getattr(function, "__name__", None)
        self._function = function
        self.name = name if isinstance(name, str) else type(function).__name__
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))

    @property
    def function(self) -> Callable[[nn.Module], Any]:
        return self._function

    def __call__(self, model: nn.Module, /) -> Any:
        value = self._function(model)
        self.samples = getattr(self._function, "samples", None)
        return value


def as_metric(metric: Callable[[nn.Module], Any]) -> Metric:
    """Return a callable as a `Metric`.

    Its attributes ``name``, ``higher_is_better`` and ``samples`` are used. By default, the name is that of the
    function, higher values are better, and samples are not counted.

    Raises
    ------
    MetricError
        If the argument is not callable.
    """
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise MetricError(f"the metric must be a callable that takes a model. Got {metric!r} instead.")
    return _Function(metric)


@in_turn
def evaluate(model: nn.Module, metric: Callable[[nn.Module], Any]) -> float:
    """Return the value of a metric for a model.

    The metric is called in evaluation mode under ``torch.no_grad``; the model and the random states are restored. If
    the model computes gradients in its forward, the metric is called again with gradients enabled.

    Parameters
    ----------
    model : Module
        The model.
    metric : callable
        ``metric(model)`` returns a number: `top1(loader)`, for example, or any function.

    Raises
    ------
    MetricError
        If the metric is not callable, or does not return a finite number.
    """
    metric = as_metric(metric)
    value = measure(require_module(model), metric)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(
            f"metric {metric.name!r} must return a number. Got {type(value).__name__} instead."
        ) from error
    if not math.isfinite(number):
        raise MetricError(
            f"metric {metric.name!r} returned {number} instead of a finite number. Check the model's "
            "outputs and the data for NaN and infinity."
        )
    return number
