"""Bounds on flash and RAM at the data type in which a model is going to be stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import UnknownNameError


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10)
        )


EXAMPLE = torch.zeros(1, 3, 8, 8)
PLAIN = {"methods": "svd", "strategy": "compressnas"}


def test_flash_is_counted_at_the_deployment_type(model: nn.Module) -> None:
    """The bytes of the built model at one byte a weight keep a bound that four bytes a weight would break."""
    result = rf.compress(model, EXAMPLE, budget="flash<=9KiB", deploy_dtype="int8", **PLAIN)
    weights = sum(p.numel() for name, p in result.model.named_parameters() if name.endswith("weight"))
    biases = sum(p.numel() for name, p in result.model.named_parameters() if name.endswith("bias"))
    scales = sum(m.weight.shape[0] for m in result.model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert result.report.after.weight_bytes == weights + 4 * biases + 4 * scales <= 9 * 1024
    assert 4 * (weights + biases) > 9 * 1024  # the same bound at the model's own type would have been broken
    assert result.report.before.weight_bytes == 15_200 + 4 * (74 + 74)
    assert result.plan.provenance.deploy_dtype == "int8"


def test_half_the_bytes_need_half_the_reduction(model: nn.Module) -> None:
    """At float16 the dense model keeps a bound that its own type breaks by a factor of two."""
    dense = rf.inspect(model, EXAMPLE).total.weight_bytes
    with pytest.raises(rf.RankfoldError, match="already meets budget"):
        rf.plan(model, EXAMPLE, budget=f"flash<={dense // 2}", deploy_dtype="float16", **PLAIN)
    assert rf.plan(model, EXAMPLE, budget=f"flash<={dense // 2}", **PLAIN).factored


def test_ram_is_counted_at_the_deployment_type(model: nn.Module) -> None:
    """The least peak that can be reached is a quarter at one byte an activation."""
    with pytest.raises(rf.RankfoldError) as own:
        rf.plan(model, EXAMPLE, budget="ram<=10", **PLAIN)
    with pytest.raises(rf.RankfoldError) as small:
        rf.plan(model, EXAMPLE, budget="ram<=10", deploy_dtype="int8", **PLAIN)
    assert str(own.value) != str(small.value)


def test_unknown_type_is_refused(model: nn.Module) -> None:
    with pytest.raises(UnknownNameError, match="int7"):
        rf.compress(model, EXAMPLE, budget="flash<=9KiB", deploy_dtype="int7", **PLAIN)


def test_plan_keeps_its_deployment_type_on_disk(model: nn.Module, tmp_path: Path) -> None:
    plan = rf.plan(model, EXAMPLE, budget="flash<=9KiB", deploy_dtype="int8", **PLAIN)
    assert rf.Plan.load(plan.save(tmp_path / "plan.json")).provenance == plan.provenance
