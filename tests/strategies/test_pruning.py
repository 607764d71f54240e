"""Strategies prune and norton: which channels go, how many, and what is refused."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import strategies
from rankfold.cost import Pricing
from rankfold.criteria import Filters
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, NoMatchingLayer, UnknownNameError
from rankfold.factor.moments import Moments
from rankfold.inventory import layer_weight
from rankfold.inventory.narrowing import narrowed_moments, narrowed_weight
from rankfold.records import Budget, Plan
from rankfold.strategies import Norton, Problem, Prune
from rankfold.strategies.channels import kept_width
from rankfold.testing import ModelCase, make_problem, model_zoo
from rankfold.testing.problems import applied

CASES = {case.id: case for case in model_zoo()}


class _Residual(nn.Module):
    """Two convolutions whose outputs are added, and a third that receives the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.inner = nn.Conv2d(12, 10, 3, padding=1)
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 20, 3)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


RESIDUAL = ModelCase(id="residual", build=_Residual, input_shape=(1, 3, 8, 8))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return replace(make_problem(RESIDUAL, RESIDUAL.model()), options={"filterwise_cp": {"iterations": 10}})


def widths(plan: Plan) -> dict[str, int]:
    return {group.name: len(group.kept) for group in plan.narrowing}


def test_the_groups_are_those_of_the_network(problem: Problem) -> None:
    assert {g.name: (g.width, [a.name for a in g.on("outputs")]) for g in problem.groups} == {
        "stem": (12, ["stem", "outer"]),
        "inner": (10, ["inner"]),
        "last": (20, ["last"]),
    }


@pytest.mark.parametrize(
    ("width", "ratio", "kept"), [(16, 0.18, 13), (64, 0.4, 38), (10, 0.9, 1), (10, 0.7, 3), (12, 0.08, 11), (5, 0.0, 5)]
)
def test_widths_are_rounded_down_without_an_error_of_rounding(width: int, ratio: float, kept: int) -> None:
    assert kept_width(width, ratio) == kept


@pytest.mark.parametrize("name", ["prune", "norton"])
def test_ratios_of_all_and_of_named_layers(name: str, problem: Problem) -> None:
    assert widths(strategies.get(name, {"ratio": 0.4}).plan(problem)) == {"stem": 7, "inner": 6, "last": 12}
    assert widths(strategies.get(name, {"ratio": 0.99}).plan(problem)) == {"stem": 1, "inner": 1, "last": 1}
    assert not strategies.get(name, {"ratio": 0.0}).plan(problem).narrowing
    some = {"inner": 0.5, "o*": 0.25}  # `outer` shares its channels with `stem`
    assert widths(strategies.get(name, {"ratio": some}).plan(problem)) == {"stem": 9, "inner": 5}
    first = {"last": 0.1, "*": 0.5}
    assert widths(strategies.get(name, {"ratio": first}).plan(problem)) == {"stem": 6, "inner": 5, "last": 18}


def test_the_filters_of_least_norm_go_and_coupled_layers_count_equally(problem: Problem) -> None:
    removed = {g.name: set(g.removed) for g in Prune(criterion="l2", ratio=0.5).plan(problem).narrowing}
    norms = {n: problem.weight(n).double().flatten(1).norm(dim=1) for n in ("stem", "outer", "inner")}
    assert removed["inner"] == set(norms["inner"].argsort()[:5].tolist())
    both = norms["stem"] / norms["stem"].mean() + norms["outer"] / norms["outer"].mean()
    assert removed["stem"] == set(both.argsort()[:6].tolist())
    assert removed["stem"] != set(norms["stem"].argsort()[:6].tolist())


def test_the_criterion_and_its_rank_are_used(problem: Problem) -> None:
    layer = problem.inventory.layer("inner")
    for rank in (1, 3):
        scores = rf.criteria.get("pabs").scores(Filters(problem.weight("inner"), layer, rank=rank))
        expected = set(scores.argsort()[:5].tolist())
        pruned = Prune(ratio={"inner": 0.5}, rank=rank, criterion="pabs").plan(problem)
        factored = Norton(ratio={"inner": 0.5}, rank=rank, criterion="pabs").plan(problem)
        assert set(pruned.narrowing.groups[0].removed) == expected
        assert set(factored.narrowing.groups[0].removed) == expected


def test_random_channels_depend_on_the_seed_and_the_layer(problem: Problem) -> None:
    def removed(seed: int) -> list[tuple[int, ...]]:
        narrowing = Prune(criterion="random", ratio=0.5).plan(replace(problem, seed=seed)).narrowing
        return [group.removed for group in narrowing]

    assert removed(1) == removed(1)
    assert removed(1) != removed(2)
    equal = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    narrowing = rf.plan(equal, torch.zeros(1, 16), strategy=Prune(criterion="random", ratio=0.5)).narrowing
    assert len({group.removed for group in narrowing}) == 3


@pytest.mark.parametrize("budget", ["params<=60%", "macs<=50%", "params<=70%, macs<=40%", "flash<=3KiB"])
@pytest.mark.parametrize("name", ["prune", "norton"])
def test_a_budget_is_met_closely_and_by_the_built_model(name: str, budget: str, problem: Problem) -> None:
    model, bounds = RESIDUAL.model(), Budget.parse(budget)
    plan = strategies.get(name).plan(replace(problem, budget=bounds))
    total, cost = problem.inventory.total, problem.pricing.plan_cost(plan)
    assert not bounds.exceeded(cost, total)
    ratio = plan.provenance.config["ratio"]
    if ratio > 0:
        rank = {"rank": plan.provenance.config["rank"]} if name == "norton" else {}
        looser = strategies.get(name, {"ratio": max(0.0, ratio - 1e-6), **rank}).plan(problem)
        assert bounds.exceeded(problem.pricing.plan_cost(looser), total)
    built = Pricing.of(rf.inspect(applied(model, plan), RESIDUAL.input())).inventory.total
    assert (built.params, built.macs, built.weight_bytes) == (cost.params, cost.macs, cost.weight_bytes)


def test_norton_factors_what_becomes_smaller(problem: Problem) -> None:
    plan = Norton(ratio=0.0, rank={"stem": 6, "inner": 2, "outer": 99}).plan(problem)
    assert {name: choice.ranks for name, choice in plan.factored.items()} == {"inner": (2,)}
    assert plan.kept["stem"] == "it would not become smaller at rank 6"
    assert plan.kept["last"] == "no rank is given for it"
    assert plan.kept["head"] == "it only supports convolutions"
    assert {c.ranks for c in Norton(ratio=0.0, rank=1).plan(problem).factored.values()} == {(1,)}


def test_norton_takes_the_rank_of_least_loss(problem: Problem) -> None:
    """Recomputed from the built models: the share of the energy of each weight that is lost, with its channels."""
    model, bounded = RESIDUAL.model(), replace(problem, budget=Budget.parse("params<=35%"))

    def loss(plan: Plan) -> float:
        removed, small, lost = plan.narrowing.removed(), applied(model, plan), 0.0
        for layer in problem.inventory:
            weight = layer_weight(model, layer.name).double()
            narrow = narrowed_weight(weight, layer, removed.get(layer.name, {}))
            difference = layer_weight(small, layer.name).double() - narrow
            lost += 1 - float((narrow.square().sum() - difference.square().sum()) / weight.square().sum())
        return lost

    losses: dict[int, float] = {}
    for rank in range(1, 9):
        try:
            losses[rank] = loss(Norton(rank=rank).plan(bounded))
        except InfeasibleBudget:
            continue
    chosen = Norton().plan(bounded)
    assert len(losses) > 4
    assert losses[chosen.provenance.config["rank"]] <= 1.05 * min(losses.values())  # predicted for the dense filters
    assert losses[chosen.provenance.config["rank"]] < 0.9 * max(losses.values())


@pytest.mark.parametrize("name", ["prune", "norton"])
def test_layers_that_the_user_decided_stay_whole(name: str) -> None:
    model, x = RESIDUAL.model(), RESIDUAL.input()
    plan = rf.plan(model, x, strategy=name, exclude="last")
    assert widths(plan) == {"inner": widths(plan)["inner"]}  # `last` reads the channels of `stem`
    plan = rf.plan(model, x, strategy=name, overrides={"inner": ("svd", (2,))})
    assert set(widths(plan)) == {"last"}
    assert plan.layers["inner"].method == "svd"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ratio": 1.0}, ConfigError, r"ratio must be a share of channels, 0 <= ratio < 1.*Got 1.0"),
        ({"ratio": -0.1}, ConfigError, "Got -0.1"),
        ({"ratio": {"stem": 1}}, ConfigError, "ratio < 1"),
        ({"ratio": True}, ConfigError, "Got True"),
        ({"criterion": "pbas"}, UnknownNameError, "criterion 'pbas'.*pabs"),
        ({"most": 1.0}, ConfigError, "most"),
        ({"rank": 0}, ConfigError, "rank must be"),
    ],
)
@pytest.mark.parametrize("name", ["prune", "norton"])
def test_bad_options(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        strategies.get(name, options)


@pytest.mark.parametrize(
    ("ratio", "error", "words"),
    [
        ({"last": 0.96}, ConfigError, "0.96 would remove all 20 channels of layer 'last'. Use at most 0.95"),
        ({"stem": 0.3, "outer": 0.4}, ConfigError, "'stem' and 'outer' share their channels.*Got 0.3 and 0.4"),
        ({"head": 0.3}, ConfigError, "'head' cannot be narrowed: it is an output of the model"),
        ({"steem": 0.3}, NoMatchingLayer, "'steem'.*'stem'"),
    ],
)
@pytest.mark.parametrize("name", ["prune", "norton"])
def test_ratios_that_do_not_fit(
    name: str, ratio: dict[str, float], error: type[Exception], words: str, problem: Problem
) -> None:
    with pytest.raises(error, match=words):
        strategies.get(name, {"ratio": ratio}).plan(problem)


def test_a_budget_on_ram_is_refused() -> None:
    with pytest.raises(BudgetError, match="'prune' cannot bound ram"):
        rf.plan(RESIDUAL.model(), RESIDUAL.input(), strategy="prune", budget="ram<=80%")


def test_groups_outside_of_bounded_parts_keep_their_channels() -> None:
    model, x = nn.Sequential(OrderedDict((n, nn.Linear(16, 16)) for n in "abcde")), torch.zeros(1, 16)
    plan = rf.plan(model, x, strategy="prune", budget="params(d)<=60%")
    assert set(widths(plan)) == {"c", "d"}


def test_accuracy_drop_is_bisected() -> None:
    model, x = RESIDUAL.model(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        data = [(x, model(x).argmax(1))]
    result = rf.compress(model, x[:1], strategy="prune", evaluate=rf.top1(data), budget="accuracy_drop<=60%")
    assert result.plan.narrowing
    assert (result.report.metrics[0].reloaded or 0) >= 0.4


@pytest.mark.parametrize("groups", [1, 2])
def test_the_moments_of_narrow_layers_are_those_of_the_remaining_inputs(groups: int) -> None:
    layer = rf.inspect(nn.Conv2d(8, 4, (3, 1), groups=groups), torch.zeros(1, 8, 5, 5)).layers[0]
    gone = {"inputs": frozenset({1, 5}), "outputs": frozenset({0, 2})}
    # Channel first, then kernel position; sums of integers are exact.
    x = torch.randint(-9, 10, (200, 8, 3)).double()

    def moments(x: torch.Tensor) -> Moments:
        by_group = x.unflatten(1, (groups, -1)).transpose(0, 1)
        channel = torch.einsum("gnck,gndk->gcd", by_group, by_group) / (200 * 3)
        patch = torch.einsum("gna,gnb->gab", by_group.flatten(2), by_group.flatten(2)) / 200
        return Moments(channel=channel, patch=patch, count=600)

    narrow, expected = narrowed_moments(moments(x), layer, gone), moments(x[:, [0, 2, 3, 4, 6, 7]])
    assert torch.equal(narrow.channel, expected.channel)
    assert torch.equal(narrow.patch, expected.patch)


def test_errors_are_those_of_outputs_with_calibration_data() -> None:
    model, x = RESIDUAL.model(), RESIDUAL.input()
    images = [torch.randn(64, 3, 8, 8) * torch.tensor([4.0, 0.1, 1.0]).view(1, 3, 1, 1)]
    by_weights, by_outputs = (
        rf.plan(model, x, strategy=Norton(ratio=0.3, rank=2), calibration=images, data_aware=aware)
        for aware in (False, True)
    )
    assert by_outputs.provenance.errors == "outputs"
    assert by_outputs.layers["inner"].error != by_weights.layers["inner"].error


def test_a_model_without_channel_groups_is_kept_or_refused_with_the_reasons() -> None:
    net, x = nn.Linear(6, 4), torch.randn(2, 6)
    reasons = r"no channels can be removed \(\(the model\): it is an output of the model\)"
    assert re.match(reasons, rf.plan(net, x, strategy="prune").kept[""])
    for strategy in ("prune", "norton"):
        with pytest.raises(InfeasibleBudget, match=reasons):
            rf.plan(net, x, strategy=strategy, budget="params<=50%")


@pytest.mark.parametrize(
    ("strategy", "methods", "words"),
    [
        ("prune", "svd", "strategy 'prune' factors no layers. Leave out methods='svd'"),
        ("norton", ["filterwise_cp", "tucker"], "only factors with 'filterwise_cp'. Leave out methods='tucker'"),
    ],
)
def test_methods_without_use_are_refused(strategy: str, methods: object, words: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigError, match=words):
        rf.plan(net, x, strategy=strategy, methods=methods)
    assert rf.plan(net, x, strategy="norton", methods=rf.FilterwiseCP()).narrowing
