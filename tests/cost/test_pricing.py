"""Prices of layers, candidates and plans: against what a built model costs, at every data type, in a new resource."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import methods
from rankfold.candidates import TableConfig, build_table
from rankfold.cli._options import FLAGS
from rankfold.cost import Pricing, gauged_cost
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.records import RESOURCES, Blueprint, Choice, Cost, LayerInfo, Plan, Resource, register_resource
from rankfold.records.deploy import DEPLOY_DTYPES

X = torch.zeros(2, 3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(24 * 16, 20)).eval()


PLAN = Plan(
    layers={
        "0": Choice(reason="small"),
        "3": Choice(method="tucker", ranks=(6, 5)),
        "5": Choice(method="svd", ranks=(12,)),
    }
)


@pytest.mark.parametrize("deploy_dtype", [None, *DEPLOY_DTYPES])
def test_a_plan_costs_what_the_built_model_costs(deploy_dtype: str | None) -> None:
    pricing = Pricing.of(inspect(network(), X), deploy_dtype=deploy_dtype)
    small = inspect(rf.apply(network(), PLAN, reconstruct="weights"), X)
    assert pricing.plan_cost(PLAN) == pricing.built(small, PLAN).total
    assert pricing.plan_cost(PLAN) == pricing.total_with(pricing.layer_costs(PLAN))
    assert pricing.plan_cost(Plan(layers={})) == pricing.inventory.total
    assert list(pricing.layer_costs(PLAN)) == ["3", "5"]


def test_the_prices_of_a_plan_are_at_its_data_type() -> None:
    inventory = inspect(network(), X)
    at_int8 = replace(PLAN, provenance=replace(PLAN.provenance, deploy_dtype="int8", budget="energy<=2"))
    assert Pricing.of_plan(inventory, at_int8) == Pricing.of(inventory, deploy_dtype="int8")
    assert Pricing.of_plan(inventory, PLAN).inventory is inventory


def test_gauging_has_to_win_unless_it_is_asked_for() -> None:
    inventory = inspect(network(), X)
    layer, svd = inventory.layer("5"), methods.get("svd")
    for rank in (1, 2, 9, 17):
        for deploy_dtype in (None, "int8"):
            found = Pricing.of(inventory, gauge=True, deploy_dtype=deploy_dtype).candidate(layer, svd, (rank,))
            expected = gauged_cost(svd.blueprint(layer, (rank,)), layer, deploy_dtype=deploy_dtype)
            assert (found.cost, found.gauge) == expected
    plain = Pricing.of(inventory)
    assert not plain.candidate(layer, svd, (2,)).gauge
    forced = plain.candidate(layer, svd, (2,), gauge=True)
    assert forced.gauge
    assert forced.cost == plain.choice_cost("5", Choice(method="svd", ranks=(2,), gauge=True))
    assert forced.cost.weight_bytes > plain.candidate(layer, svd, (2,)).cost.weight_bytes  # indices: it does not win


def test_a_share_of_the_parameters_gives_the_best_ranks_within_it() -> None:
    net = network()
    pricing = Pricing.of(inspect(net, X))
    layer, tucker = pricing.inventory.layer("3"), methods.get("tucker")
    error = methods.prepare(tucker, layer_weight(net, "3"), layer).error
    limit = 0.3 * pricing.inventory.costs["3"].params
    ranks = pricing.ranks_within(layer, tucker, 0.3, error)
    sizes = {r: pricing.candidate(layer, tucker, r).cost.params for r in tucker.rank_grid(layer)}
    assert sizes[ranks] <= limit
    assert error(ranks) == min(error(r) for r, params in sizes.items() if params <= limit)
    with pytest.raises(ConfigError, match=r"no ranks of 'tucker' fit layer '3'.* in 0\.1 % .* share is \d+(\.\d+)? %"):
        pricing.ranks_within(layer, tucker, 0.001, error)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"'3'.*\(0, 1\]"):
            pricing.ranks_within(layer, tucker, share, error)


def nanojoules(layer: LayerInfo, blueprint: Blueprint | None) -> int:
    """Return a time for a layer as it might be measured: 300 for each stage, and one for each output channel."""
    return 300 + 50 * layer.out_channels if blueprint is None else 300 * len(blueprint.stages) + layer.out_channels


@pytest.fixture
def energy() -> Iterator[Resource]:
    """A resource that is registered for one test."""
    resource = Resource(
        name="energy", title="energy on the device", summary="measured energy", units={"nJ": 1, "uJ": 1e3},
        show="{:.0f} nJ".format, layer=nanojoules,
    )  # fmt: skip
    register_resource(resource)
    yield resource
    del RESOURCES[resource.name]


def test_a_new_resource_is_known_everywhere(energy: Resource) -> None:
    dense = sum(nanojoules(layer, None) for layer in inspect(network(), X))
    result = rf.compress(network(), X, budget="energy<=80%, params<=60%", strategy="energy")
    report = result.report
    layers = inspect(network(), X)
    after = sum(
        nanojoules(layer, None if choice.method is None else methods.chosen_blueprint(layer, choice))
        for layer, choice in zip(layers, result.plan.layers.values(), strict=True)
    )
    assert report.before.get("energy") == dense
    assert report.after.get("energy") == after <= 0.8 * dense
    assert [(bound.resource, bound.met) for bound in report.bounds] == [("energy", True), ("params", True)]
    for text in (report.to_markdown(), report.to_html()):
        assert "energy on the device" in text
        assert f"{after} nJ" in text
    assert rf.Report.from_json(report.to_json()) == report
    assert str(rf.Budget.parse("energy<=1.5uJ")) == "energy<=1500"
    with pytest.raises(BudgetError, match="unknown unit 'KiB' of energy. Use .*nJ, uJ"):
        rf.Budget.parse("energy<=1KiB")
    with pytest.raises(InfeasibleBudget, match="energy"):
        rf.plan(network(), X, budget="energy<=10nJ")


def test_strategies_choose_in_the_new_resource(energy: Resource) -> None:
    for strategy in ("compressnas", "energy", "uniform", "vbmf"):
        plan = rf.plan(network(), X, budget="energy<=80%", strategy=strategy, methods=("svd", "tucker"))
        pricing = Pricing.of_plan(inspect(network(), X), plan)
        assert pricing.plan_cost(plan).get("energy") <= 0.8 * pricing.inventory.total.get("energy")
    swept = rf.sweep(network(), X, resource="energy", points=3)
    assert all(swept.amount(point) <= swept.dense.get("energy") for point in swept.feasible)


def test_a_new_resource_is_priced_where_it_is_asked_for(energy: Resource) -> None:
    plain = Pricing.of(inspect(network(), X), resources=("params", "ram"))
    assert plain.resources == ()
    with pytest.raises(BudgetError, match="energy was not priced"):
        plain.inventory.total.get("energy")
    asked = Pricing.of(inspect(network(), X), resources=("energy", "energy"), gauge=True)
    assert asked.resources == ("energy",)
    net, config = network(), TableConfig(methods=("svd",), points=3)
    table = build_table(asked, lambda name: layer_weight(net, name), config)
    for row in table.rows.values():
        for candidate in row:
            layer = asked.inventory.layer(candidate.layer)
            blueprint = methods.chosen_blueprint(layer, Choice.of(candidate))
            assert candidate.cost.get("energy") == nanojoules(layer, blueprint)
    with pytest.raises(UnknownNameError, match="energy"):
        Pricing.of(inspect(network(), X), resources=("energi",))


@pytest.mark.parametrize("amount", [-1, 0.5, 2**53 + 1, None])
def test_amounts_that_cannot_be_added_are_refused(
    amount: Any, energy: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RESOURCES, "energy", replace(energy, layer=lambda _layer, _blueprint: amount))
    with pytest.raises(ConfigError, match=r"the energy of layer '0' .* must be an integer from 0 to 2\^53. Got"):
        rf.plan(network(), X, budget="energy<=80%", methods="svd")


@pytest.mark.parametrize(
    "more",
    [
        {"name": "params"},
        {"name": "bytes"},
        {"name": "new", "aliases": ("parameters",)},
        {"name": "New"},
        {"layer": None},
        {"amount": lambda cost: cost.params},
        {"kind": "peak"},
    ],
)
def test_resources_that_cannot_be_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"resource|name"):
        register_resource(Resource(**{"name": "new", "title": "", "summary": "", "layer": nanojoules, **more}))
    assert "new" not in RESOURCES


def test_further_amounts_add_up() -> None:
    a, b = Cost(params=1, more={"x": 3}), Cost(params=2, more={"x": 4, "y": 5})
    assert (a + b).more == {"x": 7, "y": 5}
    assert (b - a).more == {"x": 1, "y": 5}
    assert len({a, b, Cost(params=1, more={"x": 3}), Cost(params=1)}) == 3


def test_help_and_documents_list_the_resources() -> None:
    shown = ", ".join(f"{name} ({resource.summary})" for name, resource in RESOURCES.items())
    assert FLAGS["budget"].help.endswith(f" Resources: {shown}.")
    page = (Path(__file__).parents[2] / "docs" / "budgets.md").read_text("utf-8")
    missing = [name for name in RESOURCES if f"| `{name}` | " not in page]
    assert not missing, f"docs/budgets.md: the table of resources lacks {missing}"
    assert "| `energy` | " not in page
