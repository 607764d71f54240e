"""Measure a model with any callable."""

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
    """A callable that measures a model, with what a report needs to know about it.

    Any callable will do where a metric is asked for; see `as_metric`.

    Attributes
    ----------
    name : str
        The name in reports, such as ``"top-1"``.
    higher_is_better : bool
        Whether a better model has a higher value.
    samples : int or None
        The number of samples that the last measurement took; None if they are not counted.
    """

    name: str
    higher_is_better: bool = True
    samples: int | None = None

    def __call__(self, model: nn.Module, /) -> Any:
        """Return the value of the model."""
        raise NotImplementedError

    @property
    def function(self) -> Callable[[nn.Module], Any]:
        """What measures: this object, or the callable that `as_metric` was given."""
        return self

    def drop(self, before: float, after: float) -> float:
        """Return by how much a value is worse than another one, in the metric's unit; negative if it is better."""
        return before - after if self.higher_is_better else after - before


class _Function(Metric):
    """A metric made of any callable."""

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
    """Return any callable of a model as a `Metric`.

    Its attributes ``name``, ``higher_is_better`` and ``samples`` are respected. Without them it has its own name,
    higher values are better, and samples are not counted.

    Raises
    ------
    MetricError
        If it is not callable.
    """
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise MetricError(f"the metric must be a callable of a model. Got {metric!r} instead.")
    return _Function(metric)


@in_turn
def evaluate(model: nn.Module, metric: Callable[[nn.Module], Any]) -> float:
    """Return the metric's value of the model.

    The metric is called in evaluation mode under ``torch.no_grad``; afterwards the model and the random states are as
    before. For a model that differentiates in its forward it is called again with gradients on.

    Parameters
    ----------
    model : Module
        The model.
    metric : callable
        ``metric(model)`` returns a number; such as `top1(loader)`, or any function.

    Raises
    ------
    MetricError
        If the metric is not callable, or its value is not a finite number.
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
            f"metric {metric.name!r} returned {number}. It must be a finite number: does the model's "
            "output, or the data, hold NaN?"
        )
    return number
