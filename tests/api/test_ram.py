"""Bounds on peak RAM, from the call to the applied model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.cost import activation_profile
from rankfold.errors import BudgetError, InfeasibleBudget, ModelError
from rankfold.inventory import export_graph
from rankfold.records import Choice

X = torch.zeros(1, 3, 12, 12)


class Net(nn.Module):
    """What takes most is the layer that reads the wide feature map beside the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 24, 3, padding=1)
        self.back = nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.back(self.wide(x).relu())).mean((2, 3)))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() >= 0 else self.stem(x)


def peak(model: nn.Module) -> int:
    graph = export_graph(model, X)
    return activation_profile(graph.graph, graph.constants, graph.users, ()).peak


BACK = {"back": ("tucker", (4, 3))}


@pytest.mark.parametrize("strategy", ["energy", "uniform", rf.Manual(layers=BACK)], ids=str)
@pytest.mark.parametrize("budget", ["ram<=90%", "ram<=20.5kB", "ram<=90%, params<=70%"])
def test_the_applied_model_is_within_the_bound(strategy: Any, budget: str) -> None:
    net = Net().eval()
    if strategy == "manual" and "params" in budget:
        budget = budget.replace("70%", "90%")
    plan = rf.plan(net, X, budget=budget, strategy=strategy)
    assert "back" in plan.factored
    assert peak(rf.apply(net, plan)) <= (20500 if "kB" in budget else 0.9 * peak(net))
    assert plan.provenance.budget is not None
    assert "ram<=" in plan.provenance.budget


def test_overrides_count() -> None:
    net = Net().eval()
    plan = rf.plan(net, X, budget="ram<=90%", strategy="energy", overrides=BACK)
    assert plan.layers["back"].ranks == (4, 3)
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, X, budget="ram<=90%", strategy="energy", overrides={"back": None})
    assert caught.value.rows == (("ram", int(0.9 * peak(net)), peak(net), peak(net)),)


@pytest.mark.parametrize("strategy", ["energy", "uniform", "vbmf"])
def test_the_least_reachable_is_told_and_reached(strategy: str) -> None:
    net = Net().eval()
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, X, budget="ram<=1%", strategy=strategy, methods="svd,tucker")
    ((resource, asked, least, dense),) = caught.value.rows
    assert (resource, asked, dense) == ("ram", peak(net) // 100, peak(net))
    assert asked < least < dense
    if strategy != "vbmf":
        plan = rf.plan(net, X, budget={"ram": least}, strategy=strategy, methods="svd,tucker")
        assert peak(rf.apply(net, plan)) == least


def test_a_strategy_with_candidates_of_its_own_is_held_to_the_bound() -> None:
    net = Net().eval()
    strategy = rf.Manual(layers={"back": ("tucker", (8, 7))})  # 8 + 24 + 7 maps of 144
    with pytest.raises(InfeasibleBudget, match="its plan takes more RAM") as caught:
        rf.plan(net, X, budget="ram<=90%", strategy=strategy)
    assert caught.value.rows == (("ram", int(0.9 * peak(net)), 4 * 39 * 144, peak(net)),)
    plan = rf.plan(net, X, budget={"ram": 4 * 39 * 144}, strategy=strategy)
    assert peak(rf.apply(net, plan)) == 4 * 39 * 144


def test_a_bound_that_holds_already() -> None:
    with pytest.raises(BudgetError, match="already meets budget"):
        rf.plan(Net().eval(), X, budget="ram<=100%", strategy="energy")


def test_the_example_input_may_be_a_slice() -> None:
    many, model = torch.zeros(5, 3, 12, 12), Net().eval()
    plans = [rf.plan(model, x, budget="ram<=90%", strategy="uniform") for x in (many[:1], X)]
    assert plans[0].layers == plans[1].layers


def test_a_model_that_cannot_be_exported_can_have_other_bounds() -> None:
    net = Branching().eval()
    assert rf.plan(net, X, budget="params<=70%", strategy="energy").factored
    with pytest.raises(ModelError, match="bound on ram"):
        rf.plan(net, X, budget="params<=70%, ram<=90%", strategy="energy")


def test_a_drop_of_accuracy_is_refused_where_nothing_is_measured() -> None:
    with pytest.raises(BudgetError, match="evaluate"):
        rf.plan(Net().eval(), X, budget="accuracy_drop<=1%")


def test_compress_reports_the_bound() -> None:
    result = rf.compress(Net().eval(), X, budget="ram<=90%, params<=80%", strategy="energy")
    assert peak(result.model) <= 0.9 * peak(Net().eval())
    assert [bound.resource for bound in result.report.bounds] == ["ram", "params"]
    assert [bound.met for bound in result.report.bounds] == [True, True]
    bound = result.report.bounds[0]
    assert (bound.value, bound.dense) == (peak(result.model), peak(Net().eval()))
    assert bound.limit == int(0.9 * peak(Net().eval()))
    looser = replace(result.plan, layers={name: Choice() for name in result.plan.layers})
    assert [bound.met for bound in rf.realize(Net().eval(), X, looser).report.bounds] == [False, False]
