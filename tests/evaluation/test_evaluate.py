"""`evaluate` takes any callable and checks what it returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.errors import MetricError
from rankfold.evaluation import as_metric, evaluate


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), torch.tensor(0.5), torch.tensor([2]), True])
def test_numbers_of_any_kind(value: Any) -> None:
    got = evaluate(nn.ReLU(), lambda _: value)
    assert type(got) is float
    assert got == float(value)


@pytest.mark.parametrize("value", [None, "high", torch.zeros(2), [1.0], {"acc": 1.0}])
def test_no_number(value: Any) -> None:
    def accuracy(model: nn.Module) -> Any:
        return value

    with pytest.raises(MetricError, match="'accuracy' must return a number. Got"):
        evaluate(nn.ReLU(), accuracy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_not_finite(value: Any) -> None:
    class Loss:
        name = "loss on the test set"

        def __call__(self, model: nn.Module) -> Any:
            return value

    with pytest.raises(MetricError, match=f"'loss on the test set' returned {float(value)}"):
        evaluate(nn.ReLU(), Loss())


def test_no_callable() -> None:
    with pytest.raises(MetricError, match="must be a callable"):
        evaluate(nn.ReLU(), 0.9)  # type: ignore[arg-type]


def test_the_metric_runs_in_evaluation_mode_without_gradients() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[0].eval()
    seen: list[bool] = []

    def metric(model: nn.Module) -> float:
        seen.extend([model.training, model[1].training, model(torch.ones(2)).requires_grad])  # type: ignore[index]
        torch.rand(3)
        return 1.0

    random = torch.get_rng_state()
    assert evaluate(model, metric) == 1.0
    assert seen == [False, False, False]
    assert [m.training for m in model.modules()] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), random)

    def fails(model: nn.Module) -> float:
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        evaluate(model, fails)
    assert [m.training for m in model.modules()] == [True, False, True]


def test_any_callable_is_a_metric() -> None:
    def accuracy(model: nn.Module) -> float:
        return 1.0

    class Error:
        name, higher_is_better, samples = "error", False, 7

        def __call__(self, model: nn.Module) -> float:
            return 1.0

    metric = as_metric(Error())
    assert metric(nn.ReLU()) == 1.0
    assert (metric.name, metric.higher_is_better, metric.samples, metric.drop(0.5, 0.75)) == ("error", False, 7, 0.25)

    class Callable:
        def __call__(self, model: nn.Module) -> float:
            return 1.0

    assert as_metric(accuracy).name == "accuracy"
    assert as_metric(Callable()).name == "Callable"
    metric = as_metric(Callable())
    assert as_metric(metric) is metric
    assert (metric.higher_is_better, metric.samples, metric.drop(0.9, 0.7)) == (True, None, pytest.approx(0.2))
