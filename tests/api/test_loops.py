"""Strategies that loop, through the verbs: what they need, bounds that they keep, models that they hand in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import strategies, workbench
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, PlanMismatch
from rankfold.records import Candidate, Plan
from rankfold.strategies import Problem, Strategy
from rankfold.strategies.contract import make_plan, mildest
from rankfold.testing import check_strategy, model_zoo

DATA = [(torch.randn(16, 12, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow(Strategy):
    """Raise the ranks of all layers until the trained model is good enough."""

    name = "grow"
    needs = frozenset({"metric", "recipe"})
    handles = frozenset({"accuracy_drop"})

    steps: int = 4
    keep: bool = True
    lie: bool = False

    def plan(self, problem: Problem) -> Plan:
        bench, table, budget = problem.workbench, problem.table(), problem.budget
        assert bench is not None

        def pick(level: float) -> dict[str, Candidate]:
            chosen = {}
            for name, row in table.rows.items():
                fitting = [c for c in row if c.cost.params <= (1 - level) * table.dense[name].params]
                chosen[name] = min(fitting, key=lambda c: c.error) if fitting else min(row, key=lambda c: c.cost.params)
            return chosen if level > 0 else {}

        bounds = [bound.value for bound in budget.get("accuracy_drop")] if budget is not None else []
        additive = budget is not None and budget.additive
        _, mild = mildest(problem, table, pick, strategy=self.name) if additive else ({}, 0.0)
        plan = model = None
        for step in range(self.steps):
            plan = make_plan(problem, self, pick(1 - step / self.steps * (1 - mild)), reasons=table.reasons)
            model = bench.apply(plan)
            bench.finetune(model)
            if bench.drop(model) <= min(bounds, default=0.0):
                break
        else:
            if bounds:
                raise InfeasibleBudget("no step is good enough", [])
        assert plan is not None
        assert model is not None
        if self.keep:
            bench.keep(model)
        return make_plan(problem, self, {}, reasons={}) if self.lie else plan


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies.registry, "_entries", dict(strategies.registry._entries))
    strategies.registry.register(Grow, summary="grows")


def compress(strategy: Any, budget: str = "accuracy_drop<=20%", **given: Any) -> Any:
    options: dict[str, Any] = {
        "evaluate": rf.top1(DATA),
        "finetune": rf.FineTune(data=DATA, epochs=3, loss="distill", distill="mse"),
    }
    return rf.compress(network(), DATA[0][0], budget=budget, strategy=strategy, **(options | given))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    for module in (workbench.bench, rf.api.realizing):
        train = module.finetune_

        def counted(*args: Any, train: Any = train, where: str = module.__name__, **kwargs: Any) -> Any:
            seen.append(where)
            return train(*args, **kwargs)

        monkeypatch.setattr(module, "finetune_", counted)
    return seen


def test_the_result_holds_the_model_that_the_strategy_trained(registered: None, trainings: list[str]) -> None:
    result = compress(Grow())
    assert set(trainings) == {"rankfold.workbench.bench"}
    assert result.plan.provenance.strategy == "grow"
    assert result.plan.provenance.budget == "accuracy_drop<=20%"
    assert result.plan.provenance.weights_hash
    metric = result.report.metrics[0]
    assert metric.tuned == metric.reloaded == rf.evaluate(result.model, rf.top1(DATA)) >= metric.dense - 0.2
    assert len(result.report.history) == 3
    rounds = len(trainings)
    again = compress(Grow(keep=False))  # the plan is applied and trained once more, to the same model
    assert trainings[rounds:] == ["rankfold.workbench.bench"] * rounds + ["rankfold.api.realizing"]
    assert again.plan.layers == result.plan.layers
    for a, b in zip(again.model.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_of_another_plan_is_refused(registered: None) -> None:
    with pytest.raises(PlanMismatch, match="strategy 'grow' kept the model of another plan"):
        compress(Grow(lie=True))


def test_what_a_strategy_needs_is_said_before_any_work(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rf.api.planning, "inspect", None)
    with pytest.raises(ConfigError, match=r"strategy 'grow' needs a metric. Use compress with evaluate="):
        rf.plan(network(), DATA[0][0], strategy="grow")
    with pytest.raises(ConfigError, match=r"strategy 'grow' needs a recipe"):
        compress("grow", finetune=None)
    with pytest.raises(ConfigError, match=r"which needs a metric"):
        compress("grow", evaluate=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeled(Strategy):
    """Half of every layer, by the loss of each candidate alone."""

    name = "labeled"
    needs = frozenset({"calibration", "labels"})

    def plan(self, problem: Problem) -> Plan:
        assert problem.workbench is not None
        (batch,) = problem.workbench.batches()
        losses = {n: float(problem.workbench.loss({n: problem.weight(n)}, batch)) for n in problem.table().rows}
        assert len(set(losses.values())) == 1, "the weights are the original's"
        chosen = {name: row[0] for name, row in problem.table().rows.items()}
        return make_plan(problem, self, chosen, reasons={})


def test_labels_are_found_in_the_calibration_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies.registry, "_entries", dict(strategies.registry._entries))
    strategies.registry.register(Labeled, summary="looks at labels")
    assert rf.plan(network(), DATA[0][0], strategy="labeled", calibration=DATA).factored
    for data, words in ((None, "needs calibration data"), ([DATA[0][0]], "needs labels")):
        with pytest.raises(ConfigError, match=words):
            rf.plan(network(), DATA[0][0], strategy="labeled", calibration=data)


def test_other_strategies_do_not_keep_measured_bounds() -> None:
    with pytest.raises(BudgetError, match="only be checked by measuring"):
        rf.plan(network(), DATA[0][0], budget="accuracy_drop<=1%")


def test_a_looping_strategy_passes_the_contract() -> None:
    cases = [case for case in model_zoo() if case.id == "mlp"]
    assert check_strategy(Grow(steps=3), cases=cases) > 5
