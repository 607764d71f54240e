"""The candidate table: what is in it, what it costs, what it leaves out and why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import collect_moments
from rankfold.candidates import DEFAULT_METHODS, TableConfig, build_table, resolve_methods
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, InvalidWeight, UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.methods import registry
from rankfold.records import Cost, Inventory, LayerInfo


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Flatten(),
        nn.Linear(12 * 16, 10),
        nn.Linear(10, 2),
    )


X = torch.zeros(1, 4, 6, 6)


def parts(**options: object) -> tuple[nn.Sequential, Inventory, TableConfig]:
    model = net()
    return model, inspect(model, X), TableConfig(**options)


def test_costs_equal_those_of_the_built_modules() -> None:
    model, inventory, config = parts(methods=("svd", "tucker", "spatial_svd"), points=6)
    table = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config)
    assert table.total == inventory.total
    for name, row in table.rows.items():
        for candidate in row[:: max(1, len(row) // 5)]:
            layers = {name: (candidate.method, candidate.ranks)}
            small = rf.apply(model, rf.plan(model, X, strategy=rf.Manual(layers=layers)))
            counted = inspect(small, X).total
            cost = table.cost([candidate])
            assert (counted.params, counted.macs, counted.fm) == (cost.params, cost.macs, cost.fm)


def test_no_candidate_costs_more_than_its_layer() -> None:
    model, inventory, config = parts(methods=tuple(registry.names()), points=8)
    table = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config)
    assert {c.method for row in table.rows.values() for c in row} >= {"svd", "tucker", "cp", "tt", "ttm"}
    for name, row in table.rows.items():
        for candidate in row:
            assert candidate.cost.params < table.dense[name].params
            assert candidate.cost.macs <= table.dense[name].macs
            assert 0 <= candidate.error <= 1 + 1e-6
        assert len({(c.method, c.ranks) for c in row}) == len(row)


def test_reasons() -> None:
    model, inventory, config = parts()
    table = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config)
    assert set(table.rows) | set(table.reasons) == {"0", "1", "3", "4"}
    assert "depthwise" in table.reasons["1"]
    only_cp = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), TableConfig(methods=("cp",)))
    assert set(only_cp.rows) == {"0"}
    assert only_cp.reasons["3"]


def test_no_rank_makes_a_tiny_layer_cheaper() -> None:
    model = nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 40))
    inventory = inspect(model, torch.zeros(1, 1))
    table = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), TableConfig(methods=("svd",)))
    assert table.reasons == {"0": "no rank has fewer parameters without more MACs"}
    assert set(table.rows) == {"1"}


def test_errors_are_those_of_the_data_where_there_are_moments() -> None:
    model, inventory, config = parts(methods=("svd",))
    data = [torch.randn(8, 4, 6, 6) * torch.tensor([1.0, 0.1, 0.01, 0.001]).reshape(1, 4, 1, 1)]
    moments = collect_moments(model, data, inventory.compressible)
    weights = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config)
    aware = build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config, moments=moments)
    # Only one input channel carries anything, which a small rank can follow.
    assert aware.rows["0"][3].ranks == weights.rows["0"][3].ranks
    assert aware.rows["0"][3].error < weights.rows["0"][3].error


def test_one_layer_is_prepared_at_a_time() -> None:
    model, inventory, config = parts(methods=("svd",))
    asked: list[str] = []
    seen: list[str] = []

    def weight(name: str) -> Tensor:
        asked.append(name)
        return layer_weight(model, name)

    def progress(layers: list[LayerInfo]) -> object:
        for layer in layers:
            seen.append(layer.name)
            yield layer
            assert asked == seen[: len(asked)]

    build_table(Pricing.of(inventory), weight, config, progress=progress)
    assert seen == [layer.name for layer in inventory.compressible]
    assert asked == seen


def test_a_broken_weight_is_named() -> None:
    model, inventory, config = parts()
    nn.init.constant_(model[3].weight, float("inf"))
    with pytest.raises(InvalidWeight, match="'3' .Linear 192->10. contains 1920 NaN or infinite"):
        build_table(Pricing.of(inventory), lambda name: layer_weight(model, name), config)


def test_methods_by_name() -> None:
    assert resolve_methods(None) == DEFAULT_METHODS
    assert resolve_methods("svd, tucker") == ("svd", "tucker")
    assert resolve_methods(["tucker", "svd", "tucker"]) == ("tucker", "svd")
    assert resolve_methods("all") == tuple(registry.names())
    with pytest.raises(UnknownNameError, match="Did you mean 'spatial_svd'"):
        resolve_methods("spatial-svd")
    with pytest.raises(UnknownNameError):
        resolve_methods("")
    with pytest.raises(ConfigError, match="methods must be a name or a list of names. Got 3"):
        resolve_methods(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "methods must be a list of at least one method"),
        ({"rank_multiple": 0}, "rank_multiple must be an integer >= 1. Got 0"),
        ({"rank_multiple": 2.0}, "rank_multiple must be an integer >= 1. Got 2.0"),
        ({"points": 1}, "points must be an integer >= 2. Got 1"),
        ({"options": [1]}, "method_options must be a mapping"),
        ({"options": {"svdd": {}}}, "unknown method 'svdd'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        TableConfig(**options)


def test_total_is_the_whole_model() -> None:
    model, inventory, _ = parts()
    assert inventory.total.params == sum(p.numel() for p in model.parameters())
    assert sum(inventory.costs.values(), Cost()).params == inventory.total.params
