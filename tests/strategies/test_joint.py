"""The joint search over widths and factors, against brute force on a network with a residual sum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import criteria, methods
from rankfold.calibration import collect_moments
from rankfold.candidates import Estimator, NarrowPlan
from rankfold.candidates.narrow import whole_weights
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.inventory import layer_weight
from rankfold.records import Budget, Cost, Plan, narrowed_layer
from rankfold.strategies import CompressNAS, Problem, Prune
from rankfold.strategies.channels import Channels
from rankfold.strategies.joint import JointSearch, _separable
from rankfold.testing import ModelCase, make_problem
from rankfold.testing.problems import applied


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 20, 3)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(x)).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


CASE = ModelCase(id="joint", build=_Residual, input_shape=(1, 3, 8, 8))
STRATEGY = CompressNAS(widths=(0.75, 0.5), proxy="weight")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return replace(make_problem(CASE, CASE.model()), methods=("svd", "spatial_svd"))


def searched(problem: Problem) -> JointSearch:
    assert problem.estimator is not None
    losses = problem.estimator.single(STRATEGY.proxy_options)
    return JointSearch(problem, Channels(problem, criteria.get("pabs"), 1), (0.25, 0.5), losses)


@pytest.mark.parametrize("budget", ["params<=60%", "params<=6%", "macs<=40%", "params<=50%, macs<=35%"])
def test_no_selection_is_better(budget: str, problem: Problem) -> None:
    bounded = replace(problem, budget=Budget.parse(budget))
    assert bounded.budget is not None
    total, search = problem.inventory.total, searched(bounded)
    limits = {bound.resource: bound.limit(total) for bound in bounded.budget.bounds}
    settings = {layer.name: list(search._settings(layer, tuple(limits))) for layer in problem.inventory}
    base = total - sum(problem.inventory.costs.values(), start=Cost())
    best = float("inf")
    for numbers in itertools.product(*(range(len(cuts)) for cuts in search.narrow.values())):
        widths = dict(zip(search.narrow, numbers, strict=True))
        outside = base + sum((search.outside(*one) - base for one in widths.items()), start=Cost())
        rows = [[s for s in row if s.widths.items() <= widths.items()] for row in settings.values()]
        for chosen in itertools.product(*rows):
            cost = sum((s.cost for s in chosen), start=outside)
            if all(cost.get(resource) <= limit for resource, limit in limits.items()):
                best = min(best, sum(s.loss for s in chosen))
    found = search.solve(limits)
    assert found.loss == pytest.approx(best, rel=2e-3)
    assert found.bound <= best * (1 + 1e-9)
    if budget == "params<=6%":
        assert found.narrowing
        assert found.chosen


def test_the_plan_costs_what_the_built_model_costs(problem: Problem) -> None:
    model, budget = CASE.model(), Budget.parse("params<=40%, flash<=45%")
    plan = STRATEGY.plan(replace(problem, budget=budget))
    cost = problem.pricing.plan_cost(plan)
    built = Pricing.of(rf.inspect(applied(model, plan), CASE.input())).inventory.total
    assert (built.params, built.macs, built.weight_bytes) == (cost.params, cost.macs, cost.weight_bytes)
    assert not budget.exceeded(cost, problem.inventory.total)
    assert {len(group.kept) for group in plan.narrowing} <= {9, 6, 15, 10}
    assert 0 < plan.provenance.search["bound"] <= plan.provenance.search["predicted_loss"]
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_the_loss_is_the_share_of_the_energy_that_is_lost(problem: Problem) -> None:
    """With the proxy ``weight`` the loss is the squared error."""
    search = searched(problem)
    (half,) = [s for s in search._settings(problem.inventory.layer("last"), ("params",)) if _is(s, stem=2, last=2)]
    weight = problem.weight("last").double()
    rows = weight[
        list(search.narrow["last"][2].kept)
    ]  # what the removed outputs lose counts in the layers that read them
    left = rows[:, list(search.narrow["stem"][2].kept)]
    assert half.loss == pytest.approx(1 - float(left.square().sum() / rows.square().sum()))
    assert half.cost.params == 10 * 6 * 9 + 10


def _is(setting: object, **widths: int) -> bool:
    return setting.candidate is None and setting.widths == widths


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({"joint": 1.0, "factoring": 0.96, "pruning": 1.2}, "joint"),
        ({"joint": 1.0, "factoring": 0.94, "pruning": 1.2}, "factoring"),
        ({"joint": 1.0, "factoring": 0.94, "pruning": 0.9}, "pruning"),
        ({"joint": 1.0, "factoring": 1.0, "pruning": 1.0}, "joint"),
        ({}, "joint"),  # a normalization over channels
    ],
)
def test_one_sided_plans_win_if_they_are_clearly_better(
    measured: dict[str, float], best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = CASE.model(), [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def plan(strategy: str | CompressNAS) -> Plan:
        return rf.plan(model, data[0][:1], strategy=strategy, budget="params<=10%", calibration=data)

    alone = plan(CompressNAS(widths=(0.75, 0.5), proxy="fisher+network"))
    assert "compared" not in alone.provenance.search
    plans = {"joint": alone, "factoring": plan(CompressNAS(rivals=())), "pruning": plan("prune")}
    assert plans["pruning"].narrowing.groups not in (alone.narrowing.groups, plans["factoring"].narrowing.groups)
    seen: list[object] = []

    def compare(_: object, __: object, networks: dict[str, object]) -> dict[str, float]:
        seen.extend(networks)
        return measured

    monkeypatch.setattr(Estimator, "compare_narrow", compare)
    chosen = plan(CompressNAS(widths=(0.75, 0.5)))
    assert set(seen) == set(plans)
    assert (chosen.factored, chosen.narrowing) == (plans[best].factored, plans[best].narrowing)
    assert ("predicted_loss" in chosen.provenance.search) == (best != "pruning")
    assert chosen.provenance.search.get("selected", "joint") == best


def test_a_sweep_with_widths_and_data_states_the_measured_losses() -> None:
    model, data = CASE.model(), [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    swept = rf.sweep(model, data[0][:1], points=2, calibration=data, strategy=CompressNAS(widths=(0.5,)))
    assert all((point.predicted_loss or -1) >= 0 for point in swept.points)


def test_moments_without_the_compared_samples_are_second_moments() -> None:
    """Samples that are not in the moments are not taken out of them."""
    model, x = CASE.model(), torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    strategy = CompressNAS(widths=(0.5,), samples=32, moment_samples=48)
    plan = rf.plan(model, x[:1], strategy=strategy, budget="params<=30%", calibration=[x])
    assert all(0 <= loss < 2 for loss in plan.provenance.search["compared"].values())


@pytest.mark.parametrize("factored", [False, True])
def test_a_narrow_network_is_measured_as_weights_of_the_original(factored: bool, problem: Problem) -> None:
    """Factored without data, because data-aware factors are fitted to the inputs in the narrow network."""
    model, x = CASE.model(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bounded = replace(problem, budget=Budget.parse("params<=6%" if factored else "params<=60%"))
    plan = (STRATEGY if factored else Prune()).plan(bounded)
    assert plan.narrowing
    moments = {} if factored else collect_moments(model, [x], list(problem.inventory))
    chosen = {
        name: problem.pricing.narrowed(plan.narrowing).candidate(
            narrowed_layer(problem.inventory.layer(name), plan.narrowing.removed().get(name, {})),
            methods.get(choice.method or "", choice.options), choice.ranks,
        )
        for name, choice in plan.factored.items()
    }  # fmt: skip
    assert bool(chosen) == factored
    weights = whole_weights(model, problem.inventory, NarrowPlan(narrowing=plan.narrowing, chosen=chosen), moments)
    small = rf.apply(model, plan, None if factored else [x], batchnorm=False)
    with torch.no_grad():
        wanted, before = small(x), model(x)
        for name, weight in weights.items():
            layer_weight(model, name).copy_(weight)
        assert (model(x) - wanted).norm() < 1e-3 * (before - wanted).norm()


def test_an_impossible_budget_names_the_least(problem: Problem) -> None:
    with pytest.raises(InfeasibleBudget, match="smaller") as caught:
        STRATEGY.plan(replace(problem, budget=Budget.parse("params<=10")))
    (row,) = caught.value.rows
    plan = STRATEGY.plan(replace(problem, budget=Budget.parse(f"params<={row[2]}")))
    assert problem.pricing.plan_cost(plan).params == row[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (1.0,)}, "widths must be shares"),
        ({"widths": (0.0, 0.5)}, "widths must be shares"),
        ({"widths": (0.5,), "rounds": 1}, "rounds cannot be combined with widths"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rf.CompressNAS(**options)


def test_widths_need_a_budget(problem: Problem) -> None:
    with pytest.raises(ConfigError, match="needs a budget"):
        STRATEGY.plan(problem)


def test_groups_after_a_concatenation_stay_whole() -> None:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 1)
            self.d = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.c(torch.cat([self.a(x), self.b(x)], 1).relu()).relu().mean((2, 3)))

    groups = rf.channel_groups(Concat(), torch.zeros(1, 3, 8, 8))
    assert [group.name for group in groups] == ["a", "b", "c"]
    assert [group.name for group in _separable(list(groups))] == ["c"]
