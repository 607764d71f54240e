"""Latency: fair turns, right statistics, nothing left changed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold.errors import ConfigError, ModelError
from rankfold.evaluation import LatencyResult, compare_latency, latency


class Sleeper(nn.Module):
    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.name, self.seconds, self.note = name, seconds, log.append  # no list of the model's, which is restored

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not (self.weight * x).requires_grad
        self.note(self.name)
        time.sleep(self.seconds)
        return x


def test_statistics() -> None:
    result = LatencyResult.of((4.0, 1.0, 2.0, 3.0, 10.0))
    assert result.median_ms == 3.0
    assert result.iqr_ms == 2.0
    assert result.runs_ms == (4.0, 1.0, 2.0, 3.0, 10.0)


def test_a_slower_model_is_seen_to_be_slower() -> None:
    log: list[str] = []
    models = {"slow": Sleeper("slow", 0.02, log), "fast": Sleeper("fast", 0.002, log)}
    got = compare_latency(models, torch.zeros(1), repeats=3, warmup=1)
    assert list(got) == ["slow", "fast"]
    assert got["slow"].median_ms >= 20
    assert 2 <= got["fast"].median_ms < got["slow"].median_ms
    assert len(got["slow"].runs_ms) == len(got["fast"].runs_ms) == 3


def test_models_take_turns() -> None:
    log: list[str] = []
    models = {name: Sleeper(name, 0.0, log) for name in "abc"}
    compare_latency(models, torch.zeros(1), repeats=2, warmup=2)
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"


def test_modes_threads_and_random_state_are_restored() -> None:
    seen: list[int] = []

    class Probe(nn.Module):
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            seen.append(torch.get_num_threads())
            return x * scale * torch.rand(1)

    model = Probe()
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    result = latency(model, {"x": torch.zeros(2), "scale": 2.0}, repeats=4, warmup=1, threads=2)
    assert result.median_ms > 0
    assert len(result.runs_ms) == 4
    assert seen == [2] * 5
    assert model.training
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"repeats": 0}, "repeats"), ({"warmup": -1}, "warmup"), ({"threads": 0}, "threads")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latency(nn.ReLU(), torch.zeros(1), **options)


def test_no_models() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        compare_latency({}, torch.zeros(1))


def test_a_model_that_fails_is_named() -> None:
    models = {"good": nn.Linear(3, 3), "bad": nn.Linear(4, 3)}
    with pytest.raises(ModelError, match="model 'bad' cannot run on the example input, 2x3 float32. It raised Runtime"):
        compare_latency(models, torch.zeros(2, 3), repeats=1)
