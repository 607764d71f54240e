"""From the stages' records to a report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankfold.errors import ConfigError, PlanMismatch
from rankfold.records import Budget, Choice, Cost, Inventory, Plan
from rankfold.reporting import EpochRow, Report, build_report

Parts = tuple[Inventory, Plan, dict[str, Cost]]


def test_coverage_comes_from_the_inventory(parts: Parts, small: Report) -> None:
    assert small.coverage == parts[0].summary()


def test_every_layer_has_a_row_in_order(parts: Parts, small: Report) -> None:
    assert [row.name for row in small.layers] == [layer.name for layer in parts[0]]
    assert len(small.factored) == 6


def test_a_kept_layer_says_why_and_costs_what_it_did(small: Report) -> None:
    rows = {row.name: row for row in small.layers}
    assert rows["stem"].reason == "no candidate is smaller"
    assert rows["layer3.dw"].reason == "depthwise convolution"  # the plan does not mention it
    assert rows["stem"].before == rows["stem"].after
    assert rows["layer1.0"].before != rows["layer1.0"].after


def test_a_layer_that_nobody_mentions_says_so(parts: Parts) -> None:
    inventory, plan, costs = parts
    rest = {name: choice for name, choice in plan.layers.items() if name != "stem"}
    report = build_report(inventory, replace(plan, layers=rest), inventory.total, costs)
    assert report.layers[0].reason == "not in the plan"


def test_the_budget_is_held_against_the_numbers(parts: Parts) -> None:
    inventory, plan, costs = parts
    dense = inventory.total

    def bounds(after: Cost, text: str) -> list[bool | None]:
        changed = replace(plan, provenance=replace(plan.provenance, budget=text))
        return [b.met for b in build_report(inventory, changed, after, costs).bounds]

    quarter = replace(dense, params=dense.params // 4)
    assert bounds(quarter, "params<=25%") == [True]
    assert bounds(replace(quarter, params=dense.params // 4 + 1), "params<=25%") == [False]
    assert bounds(quarter, "params<=25%, macs<=50%") == [True, False]
    # What no cost can tell has no verdict, and hides no other bound.
    assert bounds(quarter, "accuracy_drop<=1%, params<=25%") == [None, True]
    assert bounds(quarter, "") == []


def test_a_budget_given_directly_is_exact(parts: Parts) -> None:
    inventory, plan, costs = parts
    third = replace(inventory.total, params=inventory.total.params // 3)
    report = build_report(inventory, plan, third, costs, budget=Budget.parse("params/3"))
    assert [b.met for b in report.bounds] == [True]


def test_any_record_of_an_epoch_will_do(parts: Parts) -> None:
    class Other:
        epoch, loss, lr, metric, seconds = 1, 0.5, 0.1, None, 2.0

    inventory, plan, costs = parts
    report = build_report(inventory, plan, inventory.total, costs, history=[Other()])
    assert report.history == (EpochRow(epoch=1, loss=0.5, lr=0.1, seconds=2.0),)


def test_a_foreign_plan_is_refused_by_name(parts: Parts) -> None:
    inventory, plan, costs = parts
    foreign = replace(plan, layers={**plan.layers, "nowhere": Choice()})
    with pytest.raises(PlanMismatch, match="'nowhere' is not in the inventory"):
        build_report(inventory, foreign, inventory.total, costs)


def test_a_factored_layer_without_a_cost_is_refused_by_name(parts: Parts) -> None:
    inventory, plan, costs = parts
    del costs["layer2.0"]
    with pytest.raises(ConfigError, match=r"'layer2\.0'"):
        build_report(inventory, plan, inventory.total, costs)
