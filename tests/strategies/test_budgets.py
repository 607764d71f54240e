"""Budgets: met by every strategy, for every resource, and honest where they cannot be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.candidates import TableConfig, build_table
from rankfold.cost import Pricing
from rankfold.errors import InfeasibleBudget
from rankfold.inventory import inspect, layer_weight
from rankfold.records import Budget, CandidateTable, Cost, Plan, resource_names

STRATEGIES = ("energy", "uniform", "vbmf")


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()


X = torch.zeros(1, 3, 8, 8)


def built_cost(model: nn.Module, x: object, plan: Plan) -> tuple[Cost, Cost]:
    """Return the cost before and after, both measured on the module itself."""
    return inspect(model, x).total, inspect(rf.apply(model, plan), x).total


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "budget",
    [
        "params<=60%",
        "params/3",
        "macs<=50%",
        "flash<=6KiB",
        "memory<=75%",
        "params<=60%, macs<=40%",
        "macs<=60%, flash<=5000, memory<=90%",
    ],
)
def test_the_built_model_meets_the_budget(strategy: str, budget: str) -> None:
    net = small_cnn()
    before, after = built_cost(net, X, rf.plan(net, X, budget=budget, strategy=strategy))
    bounds = Budget.parse(budget)
    assert bounds.exceeded(after, before) == []
    assert bounds.exceeded(before, before) != []


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(percent=st.integers(1, 99), resource=st.sampled_from(sorted(resource_names("additive"))))
def test_met_or_infeasible(strategy: str, percent: int, resource: str) -> None:
    net = small_cnn()
    text = f"{resource}<={percent}%"
    try:
        plan = rf.plan(net, X, budget=text, strategy=strategy, methods="svd")
    except InfeasibleBudget as error:
        ((name, asked, least, dense),) = error.rows
        assert name == resource
        assert asked < least <= dense
        return
    before, after = built_cost(net, X, plan)
    assert not Budget.parse(text).exceeded(after, before)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_looser_budget_never_compresses_more(strategy: str) -> None:
    net = small_cnn()
    chosen = rf.VBMF(weaken=0.2) if strategy == "vbmf" else strategy
    after = [
        built_cost(net, X, rf.plan(net, X, budget=f"params<={percent}%", strategy=chosen))[1].params
        for percent in (40, 50, 65, 80, 95)
    ]
    assert after == sorted(after)
    assert len(set(after)) > 2


def table_of(net: nn.Module, x: torch.Tensor, *methods: str, points: int) -> CandidateTable:
    config = TableConfig(methods=methods, points=points)
    return build_table(Pricing.of(inspect(net, x)), lambda name: layer_weight(net, name), config)


def all_costs(table: CandidateTable) -> list[Cost]:
    """Return the cost of every possible choice: the brute force."""
    options = [[None, *row] for row in table.rows.values()]
    return [table.cost([c for c in chosen if c is not None]) for chosen in itertools.product(*options)]


@pytest.mark.parametrize("methods", [("svd",), ("tucker",), ("svd", "spatial_svd")])
def test_least_is_the_least_by_brute_force(methods: tuple[str, ...]) -> None:
    net, x = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 3)), torch.zeros(1, 4, 6, 6)
    table = table_of(net, x, *methods, points=4)
    assert math.prod(1 + len(row) for row in table.rows.values()) > 8
    for resource in resource_names("additive"):
        assert table.least(resource) == min(cost.get(resource) for cost in all_costs(table))


@pytest.mark.parametrize("strategy", ["energy", "uniform"])
def test_rows_of_an_infeasible_budget(strategy: str) -> None:
    net, x = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 9)), torch.zeros(1, 12)
    table = table_of(net, x, "svd", points=64)
    least = min(cost.params for cost in all_costs(table))
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, x, budget={"params": least - 1}, strategy=strategy, methods="svd")
    assert caught.value.rows == (("params", least - 1, least, table.total.params),)
    assert f"{least:,}" in str(caught.value)
    plan = rf.plan(net, x, budget={"params": least}, strategy=strategy, methods="svd")
    assert built_cost(net, x, plan)[1].params == least


def test_every_bound_of_an_infeasible_budget_is_listed() -> None:
    net, x = nn.Sequential(nn.Linear(12, 10)), torch.zeros(1, 12)
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, x, budget="params<=1%, macs<=90%")
    assert [row[0] for row in caught.value.rows] == ["params", "macs"]


def test_feature_maps_cannot_shrink() -> None:
    """Every factored layer writes its output and something in between."""
    net = small_cnn()
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, X, budget="fm<=99%")
    total = inspect(net, X).total.fm
    assert caught.value.rows == (("fm", int(0.99 * total), total, total),)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_whose_memory_would_grow_is_kept(strategy: str) -> None:
    """The first layer has few parameters and large feature maps, the last one the reverse."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 400))
    net.append(nn.Linear(400, 100))
    x = torch.zeros(1, 4, 32, 32)
    plan = rf.plan(net, x, budget="memory<=60%", strategy=strategy)
    before, after = built_cost(net, x, plan)
    assert after.memory <= 0.6 * before.memory
    if strategy != "vbmf":
        assert "0" in plan.kept
        assert "4" in plan.factored


def test_overrides_count_towards_the_budget() -> None:
    net = small_cnn()
    for overrides in ({"6": None}, {"6": ("svd", 1)}, {"2": ("tucker", (6, 5)), "0": None}):
        plan = rf.plan(net, X, budget="params<=60%", overrides=overrides)
        before, after = built_cost(net, X, plan)
        assert after.params <= 0.6 * before.params
        for name, choice in overrides.items():
            if choice is None:
                assert "override" in plan.kept[name]
            else:
                assert plan.layers[name].method == choice[0]
                assert plan.layers[name].ranks in (choice[1], (choice[1],))


def test_overrides_can_make_a_budget_infeasible() -> None:
    net = small_cnn()
    rf.plan(net, X, budget="params<=30%")
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, X, budget="params<=30%", overrides={"2": None})
    ((_, asked, least, dense),) = caught.value.rows
    kept = inspect(net, X).costs["2"].params
    assert asked < kept < least < dense


def test_first_matching_override_wins() -> None:
    net = small_cnn()
    plan = rf.plan(net, X, budget="params<=95%", overrides={"6": ("svd", 3), "*": None})
    assert plan.layers["6"].ranks == (3,)
    assert set(plan.kept) == {"0", "2", "8"}
