"""The contract over every registered strategy and every network of the model zoo, and what theory adds to it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import strategies
from rankfold.errors import InfeasibleBudget
from rankfold.records import Budget
from rankfold.testing import ModelCase, check_strategy, make_problem, model_zoo, strategy_checks
from rankfold.testing.strategies import EXAMPLE_OPTIONS, changes


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in model_zoo()])
@pytest.mark.parametrize("name", strategies.registry.names())
def test_contract(name: str, case: ModelCase) -> None:
    check_strategy(name, cases=[case])


def test_every_strategy_meets_every_check() -> None:
    ids = [check_id for check_id, _ in strategy_checks()]
    assert len(set(ids)) == len(ids)
    assert {i.split("-")[0] for i in ids} == set(strategies.registry.names())
    assert len(ids) >= 7 * len(model_zoo()) * len(strategies.registry.names())


@pytest.mark.parametrize("resource", ["params", "macs", "flash"])
@pytest.mark.parametrize("name", ["energy", "uniform"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in model_zoo() if c.compressible])
def test_a_larger_budget_never_gives_a_larger_error(name: str, case: ModelCase, resource: str) -> None:
    """Both tighten one threshold for all layers until one bound is met, so no layer's error can grow with it."""
    errors: list[dict[str, float]] = []
    unbounded = make_problem(case, case.model())
    for percent in range(30, 100, 5):
        problem = replace(unbounded, budget=Budget.parse(f"{resource}<={percent}%"))
        try:
            plan = strategies.get(name).plan(problem)
        except InfeasibleBudget:
            assert not errors, f"{percent} % is refused, a tighter budget is not"
            continue
        errors.append({layer: choice.error or 0.0 for layer, choice in plan.layers.items()})
    assert len(errors) > 3
    assert errors[0] != errors[-1], "the budget changes nothing"
    for tighter, looser in itertools.pairwise(errors):
        for layer, error in looser.items():
            assert error <= tighter[layer], layer


DEFAULTS = [entry.plugin() for entry in strategies.registry if entry.plugin is not rf.Manual]
CALIBRATED = [
    *(strategy for strategy in DEFAULTS if strategy.needs <= {"calibration"} and not strategy.narrows),
    rf.Manual(layers={"*": ("svd", 8)}),
    rf.Manual(layers={"*": ("svd", 0.5)}),
]


@pytest.mark.parametrize("strategy", CALIBRATED, ids=repr)
def test_with_calibration_data_the_errors_of_a_plan_are_those_of_the_outputs(strategy: strategies.Strategy) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(24, 32, bias=False), nn.Linear(32, 24, bias=False)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    data = torch.randn(256, 24) * torch.logspace(0, -2, 24)
    plan = rf.plan(model, data[:1], strategy=strategy, methods="svd", calibration=[data], overrides={"2": ("svd", 6)})
    small = rf.apply(model, plan, [data])
    assert plan.provenance.errors == "outputs"
    assert set(plan.factored) == {"0", "2"}
    for name, choice in plan.factored.items():
        with torch.no_grad():
            inputs = data if name == "0" else model[:2](data)
            exact = model.get_submodule(name)(inputs)
            error = (small.get_submodule(name)(inputs) - exact).norm() / exact.norm()
        assert choice.error == pytest.approx(float(error), rel=1e-3), name


@pytest.mark.parametrize("name", strategies.registry.names())
def test_the_checks_are_not_made_on_empty_plans(name: str) -> None:
    for case in model_zoo():
        strategy = strategies.get(name, EXAMPLE_OPTIONS.get(name))
        plan = strategy.plan(make_problem(case, case.model()))
        assert bool(plan.factored or plan.narrowing) == (changes(strategy, case) or name == "manual"), case.id


def test_the_zoo_says_which_networks_have_channels_to_remove() -> None:
    for case in model_zoo():
        assert case.prunable == (len(make_problem(case, case.model()).groups) > 0), case.id


@pytest.mark.parametrize("name", ["energy", "uniform"])
def test_the_budget_is_used(name: str) -> None:
    """With many small layers and a fine grid, no more than a few per cent of the budget are left over."""
    case = model_zoo()[0]
    problem = make_problem(case, case.model(), budget=Budget.parse("params<=70%"))
    plan = strategies.get(name).plan(problem)
    table = problem.table()
    chosen = [
        next(c for c in table.rows[layer] if (c.method, c.ranks) == (choice.method, choice.ranks))
        for layer, choice in plan.factored.items()
    ]
    used = table.cost(chosen).params / table.total.params
    assert 0.6 < used <= 0.7  # measured: 0.67 energy, 0.63 uniform
