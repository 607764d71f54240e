"""Bounds on RAM: the filtered table against every choice there is, and the strategies on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods, strategies
from rankfold.candidates import TableConfig, build_table
from rankfold.candidates.ram import least_ram, within_ram
from rankfold.cost import Pricing, activation_profile, layer_ram
from rankfold.errors import BudgetError, InfeasibleBudget
from rankfold.inventory import export_graph, inspect, layer_weight
from rankfold.records import (
    ActivationProfile,
    Budget,
    Candidate,
    CandidateTable,
    Choice,
    Cost,
    Inventory,
    PeakRAM,
    Plan,
)
from rankfold.strategies import Problem

X = torch.zeros(1, 3, 12, 12)


class Net(nn.Module):
    """The second convolution of the shortcut is what takes most, dense; factored it takes more or less."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 24, 3, padding=1)
        self.back = nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.back(self.wide(x).relu())).mean((2, 3)))


def profile_of(model: nn.Module, found: Inventory) -> ActivationProfile:
    graph = export_graph(model, X)
    return activation_profile(graph.graph, graph.constants, graph.users, found.compressible)


@cache
def made() -> tuple[nn.Module, Inventory, ActivationProfile, CandidateTable]:
    torch.manual_seed(0)
    net = Net().eval()
    found = inspect(net, X)
    config = TableConfig(methods=("svd", "tucker"), points=2)
    profile = profile_of(net, found)
    pricing = Pricing.of(found, gauge=True, profile=profile)
    return net, found, profile, build_table(pricing, lambda name: layer_weight(net, name), config)


def every_choice(table: CandidateTable) -> Iterator[list[Candidate]]:
    """Yield every choice of a table: the brute force."""
    rows = [[*([] if name in table.required else [None]), *row] for name, row in table.rows.items()]
    for chosen in itertools.product(*rows):
        yield [c for c in chosen if c is not None]


def as_plan(found: Inventory, chosen: list[Candidate]) -> Plan:
    picks = {c.layer: Choice(method=c.method, ranks=c.ranks, gauge=c.gauge) for c in chosen}
    return Plan(layers={layer.name: picks.get(layer.name, Choice(reason="by hand")) for layer in found})


def test_a_choice_takes_what_its_plan_takes() -> None:
    net, found, profile, table = made()
    choices = list(every_choice(table))[::31]
    assert len(choices) > 20
    for chosen in choices:
        assert table.peak_ram(chosen) == Pricing.of(found, profile=profile).peak_ram(as_plan(found, chosen))
    for chosen in choices[:3]:
        small = rf.apply(net, as_plan(found, chosen), reconstruct="weights")
        assert profile_of(small, inspect(small, X)).peak == table.peak_ram(chosen)


def test_the_filtered_table_holds_every_choice_within_the_limit_and_no_other() -> None:
    *_, table = made()
    peaks = {frozenset(map(_key, chosen)): table.peak_ram(chosen) for chosen in every_choice(table)}
    values = sorted(set(peaks.values()))
    assert len(values) > 4
    assert least_ram(table) == values[0]
    required = set()
    for limit in {*values[:: max(1, len(values) // 4)], values[0] + 1, values[-1]}:
        small = within_ram(table, limit)
        left = {frozenset(map(_key, chosen)) for chosen in every_choice(small)}
        assert left == {choice for choice, peak in peaks.items() if peak <= limit}
        required.add(small.required)
        for resource in ("params", "macs"):
            assert small.least(resource) == min(small.cost(c).get(resource) for c in every_choice(small))
    assert len(required) > 1


def _key(candidate: Candidate) -> tuple[Any, ...]:
    return candidate.layer, candidate.method, candidate.ranks, candidate.gauge


def test_a_limit_below_every_choice_is_infeasible() -> None:
    *_, table = made()
    least = least_ram(table)
    with pytest.raises(InfeasibleBudget, match=f"{least:,}") as caught:
        within_ram(table, least - 1)
    assert table.ram is not None
    assert caught.value.rows == (("ram", least - 1, least, table.ram.dense),)


def test_a_layer_without_a_candidate_left_is_kept_and_says_why() -> None:
    def candidate(layer: str, ram: int) -> Candidate:
        return Candidate(layer=layer, method="svd", ranks=(1,), cost=Cost(params=1), error=0.5, ram=ram)

    table = CandidateTable(
        rows={"a": (candidate("a", 9), candidate("a", 5)), "b": (candidate("b", 9),)},
        dense={"a": Cost(params=4), "b": Cost(params=4)},
        total=Cost(params=8),
        ram=PeakRAM(dense=8, floor=3, kept={"a": 8, "b": 6}),
    )
    small = within_ram(table, 7)
    assert {name: len(row) for name, row in small.rows.items()} == {"a": 1}
    assert small.required == {"a"}
    assert "RAM" in small.reasons["b"]
    assert small.least("params") == 5
    assert table.least("params") == 2
    with pytest.raises(InfeasibleBudget) as caught:
        within_ram(table, 5)
    assert caught.value.rows[0][2] == 6
    with pytest.raises(InfeasibleBudget):
        within_ram(replace(table, ram=PeakRAM(dense=9, floor=9, kept={"a": 8, "b": 6})), 8)


def test_decisions_made_beforehand_are_the_floor() -> None:
    net, found, profile, _ = made()
    config = TableConfig(methods=("svd",), points=3)
    pricing = Pricing.of(found, profile=profile)
    fixed = pricing.candidate(found.layer("wide"), methods.get("svd"), (8,))
    priced = build_table(pricing, lambda name: layer_weight(net, name), config, fixed={"wide": fixed})
    assert priced.ram is not None
    assert "wide" not in priced.ram.kept
    assert priced.ram.floor == priced.fixed["wide"].ram
    assert profile.floor < priced.ram.floor < layer_ram(profile, found.layer("wide")) + 4 * 24 * 144
    for chosen in list(every_choice(priced))[::7]:
        plan = as_plan(found, [fixed, *chosen])
        assert priced.peak_ram(chosen) == Pricing.of(found, profile=profile).peak_ram(plan)


def test_a_table_without_ram_says_so() -> None:
    *_, table = made()
    bare = replace(table, ram=None)
    for use in (lambda: within_ram(bare, 1), lambda: least_ram(bare), lambda: bare.peak_ram(())):
        with pytest.raises(ValueError, match="without RAM"):
            use()


def problem(table: CandidateTable, budget: str) -> Problem:
    net, found, *_ = made()
    return Problem(
        pricing=Pricing.of(found),
        table=lambda: table,
        weight=lambda name: layer_weight(net, name),
        budget=Budget.parse(budget),
        methods=("svd", "tucker"),
    )


@pytest.mark.parametrize("strategy", ["energy", "uniform"])
@pytest.mark.parametrize("more", ["", ", params<=60%", ", macs<=40%, params<=60%"])
def test_strategies_choose_from_what_is_left(strategy: str, more: str) -> None:
    _, found, profile, table = made()
    peaks = sorted({table.peak_ram(chosen) for chosen in every_choice(table)})
    limit = next(p for p in peaks if p >= 0.85 * profile.peak)
    assert limit < profile.peak
    small = within_ram(table, limit)
    assert small.required
    plan = strategies.get(strategy).plan(problem(small, f"ram<={limit}{more}"))
    assert Pricing.of(found, profile=profile).peak_ram(plan) <= limit
    assert small.required <= set(plan.factored)
    # The same bounds without the filter break the limit.
    if not more:
        assert Pricing.of(found, profile=profile).peak_ram(as_plan(found, [])) > limit


def test_a_strategy_that_keeps_a_required_layer_is_told() -> None:
    _, _, profile, table = made()
    limit = int(0.9 * profile.peak)
    small = within_ram(table, limit)
    by_hand = strategies.get("manual", {"layers": {"stem": ("svd", 2)}})
    with pytest.raises(InfeasibleBudget, match="keeps layer") as caught:
        by_hand.plan(problem(small, f"ram<={limit}"))
    assert caught.value.rows[0][:2] == ("ram", limit)


def test_a_table_that_knows_no_ram_is_refused() -> None:
    *_, table = made()
    with pytest.raises(BudgetError, match="priced without RAM"):
        strategies.get("energy").plan(problem(replace(table, ram=None), "ram<=50%"))
