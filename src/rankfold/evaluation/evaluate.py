"""Measure a model with any callable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import nn

from rankfold._turns import in_turn
from rankfold.errors import MetricError, ModelError
from rankfold.inventory import measure


@runtime_checkable
class Metric(Protocol):
    """A callable that measures a model, with what a report needs to know of it.

    Any callable will do where a metric is asked for; without these attributes its own name is shown
    and higher values count as better.
    """

    @property
    def name(self) -> str:
        """The name in reports, such as ``"top-1"``."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a better model has a higher value."""
        ...

    def __call__(self, model: nn.Module, /) -> float:
        """Return the value of the model."""
        ...


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
        ``metric(model)`` returns a number; `top1` and its like, or any function.

    Raises
    ------
    MetricError
        If the metric is not callable, or its value is not a finite number.
    """
    name = metric_name(metric)
    if not callable(metric):
        raise MetricError(f"the metric must be a callable of a model. Got {metric!r} instead.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    value = measure(model, metric)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"metric {name!r} must return a number. Got {type(value).__name__} instead.") from error
    if not math.isfinite(number):
        raise MetricError(
            f"metric {name!r} returned {number}. It must be a finite number: does the model's "
            "output, or the data, hold NaN?"
        )
    return number


def metric_name(metric: object) -> str:
    """Return the metric's name for messages and reports."""
    name = getattr(metric, "name", None) or getattr(metric, "__name__", None)
    return name if isinstance(name, str) else type(metric).__name__
