"""`rankfold.analyze`: a network's exploration spaces, from the model to the record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rankfold as rf
from rankfold.cost.exploration import Exploration, Space, explore, layer_of
from rankfold.errors import ConfigError, DataError, ModelError, RankfoldError, UnknownNameError, UnsupportedLayer

STEPS = (0.8, 0.5, 0.3)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 24, 1),
        nn.Conv2d(24, 24, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(24, 24, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(24 * 16, 30),
    )


EXAMPLE = torch.zeros(2, 3, 16, 16)


@pytest.fixture(scope="module")
def found() -> rf.reporting.exploration.Analysis:
    torch.manual_seed(0)
    return rf.analyze(network(), EXAMPLE, steps=STEPS, tolerance=0.02, random=3, title="a network")


def test_every_layer_has_its_methods(found: Any) -> None:
    methods = {layer.name: [space.method for space in layer.spaces] for layer in found.layers}
    three, matrices = ["tucker", "cp", "tt"], ["svd", "qr"]
    assert methods == {"0": three, "2": matrices, "3": three, "4": three, "6": [*matrices, "ttm"]}
    assert [layer.group for layer in found.layers] == ["convolutions", "matrices", *["convolutions"] * 2, "matrices"]
    assert "depthwise" in found.kept["1"]
    assert "linear" in found.layer("3").reasons["ttm"]
    assert found.layer("6").space("tt") is None


def test_spaces_are_those_of_the_inventorys_layers(found: Any) -> None:
    inventory = rf.inspect(network(), EXAMPLE)
    for layer in found.layers:
        assert layer.dense == inventory.costs[layer.name]
        for space in layer.spaces:
            info = inventory.layer(layer.name)
            assert space == explore(info, space.method, Exploration(steps=STEPS, tolerance=0.02, random=3, bins=20))


def test_layers_of_another_input_size_are_not_taken_for_the_same(found: Any) -> None:
    third, fourth = found.layer("3"), found.layer("4")
    assert third.space("tt").size == fourth.space("tt").size
    assert third.space("tt").memory != fourth.space("tt").memory


def test_chosen_solutions_cost_what_the_built_layer_costs() -> None:
    """Parameters of the built module, MACs of torch's own counter."""
    layer = nn.Conv2d(12, 16, 3, stride=2, padding=1)
    example = torch.randn(1, 12, 14, 14)
    analysis = rf.analyze(layer, example, methods="tucker,tt,svd,spatial_svd", steps=(0.6,), tolerance=0.04, random=2)
    for space in analysis.layers[0].spaces:
        step = space.step(0.6)
        assert step.solutions
        for solution in step.solutions:
            built = rf.factorize(layer, space.method, solution.ranks)
            assert sum(p.numel() for p in built.parameters()) == solution.cost.params
            with FlopCounterMode(display=False) as counter:
                built(example)
            assert counter.get_total_flops() == 2 * solution.cost.macs


def test_averages(found: Any) -> None:
    average = next(a for a in found.averages if a.group == "convolutions" and a.method == "cp")
    spaces = [found.layer(name).space("cp") for name in ("0", "3", "4")]
    assert average.layers == 3
    assert average.size == fmean(space.size for space in spaces)
    assert average.best_params == pytest.approx(fmean(space.params.best for space in spaces))
    assert average.worst_memory == pytest.approx(fmean(space.memory.worst for space in spaces))
    assert average.params_coverage == pytest.approx(average.best_params - average.worst_params)
    assert average.scores["flexibility"] == 2
    assert "decomposition time" not in average.scores
    assert {(a.group, a.method) for a in found.averages} == {
        *(("convolutions", m) for m in ("tucker", "cp", "tt")), *(("matrices", m) for m in ("svd", "qr", "ttm"))
    }  # fmt: skip


def test_the_record_is_json(found: Any) -> None:
    data = found.to_dict()
    assert json.loads(found.to_json()) == data
    assert data["format"] == "rankfold-analysis"
    space = data["layers"][0]["spaces"][0]
    record = found.layers[0].spaces[0]
    assert space["size"] == record.size
    assert space["params"]["coverage"] == record.params.coverage
    assert space["scores"]["flexibility"] == 4
    assert space["steps"][0]["fewest_macs"]["ranks"] == list(record.steps[0].fewest_macs.ranks)
    assert len(data["averages"]) == len(found.averages)


def test_times_are_measured_if_asked_for(found: Any) -> None:
    timed: Any = rf.analyze("linear:60x40", methods="svd,ttm", steps=(0.8, 0.02), tolerance=0.02, time=True)
    for space in timed.layers[0].spaces:
        assert space.seconds > 0
        assert space.step(0.8).prepare_s > 0
        assert space.step(0.8).factorize_s > 0
    assert timed.layers[0].space("ttm").step(0.02).prepare_s is None  # no solution
    assert all(a.seconds > 0 and a.scores["decomposition time"] == 5 for a in timed.averages)
    assert all(s.prepare_s is None for layer in found.layers for space in layer.spaces for s in space.steps)


def test_a_layer_alone() -> None:
    analysis = rf.analyze(nn.Linear(40, 30), torch.zeros(1, 40), methods=["svd"])
    assert [layer.name for layer in analysis.layers] == [""]
    assert analysis.layers[0].label == "(the model)"


def test_layers_by_shape() -> None:
    texts = ["conv:3x16x24,size=20", "conv:3x3x8x12", "conv:2x2x2x6x8,size=6", "linear:24x36"]
    analysis = rf.analyze(texts, methods="all", cores=2, bins=None)
    assert [layer.name for layer in analysis.layers] == texts
    assert {space.method for layer in analysis.layers for space in layer.spaces} == set(analysis.methods)
    assert analysis.layers[1].space("spatial_svd") is not None
    one = rf.analyze(layer_of(texts[1]), methods="tt", bins=None)
    assert one.layers[0].space("tt") == analysis.layers[1].space("tt")


def test_nothing_is_disturbed() -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    rf.analyze(model, EXAMPLE, random=2, time=True, methods="svd,tucker", cores=2)
    rf.analyze("conv:3x3x4x6", random=2, time=True, methods="svd")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_seeds() -> None:
    def drawn(seed: int) -> list[Any]:
        analysis = rf.analyze("conv:3x3x16x16", methods="tt", random=4, seed=seed, bins=None)
        return [s.ranks for step in analysis.layers[0].spaces[0].steps for s in step.random]

    assert drawn(1) == drawn(1) != drawn(2)


BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[RankfoldError], str]] = {
    "no example": ((nn.Linear(4, 4),), {}, DataError, "example_input"),
    "no layer": ((nn.ReLU(), torch.zeros(1)), {}, ModelError, "no layer"),
    "a number": ((5,), {}, ConfigError, "model_or_layers"),
    "no texts": (([],), {}, ConfigError, "model_or_layers"),
    "bad text": (("conv:3x3",), {}, ConfigError, "conv:3x3"),
    "unknown method": (("linear:8x8",), {"methods": "svd,tuker"}, UnknownNameError, "tucker"),
    "no methods": (("linear:8x8",), {"methods": []}, ConfigError, "methods"),
    "unknown option": (("linear:8x8",), {"core": 2}, UnknownNameError, "cores"),
    "steps": (("linear:8x8",), {"steps": (85,)}, ConfigError, "85"),
    "no fitting method": (("linear:8x8",), {"methods": "tt"}, UnsupportedLayer, "convolutions"),
    "shape that does not fit": (
        ("linear:8x8",), {"methods": rf.TTM(out_shape=(3, 3))}, ConfigError, "out_shape"
    ),
    "include of a text": (("linear:8x8",), {"include": "0"}, ConfigError, "include"),
    "include of nothing": ((network(), EXAMPLE), {"include": "fc"}, RankfoldError, "fc"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    args, options, error, words = BAD[name]
    with pytest.raises(error, match=words):
        rf.analyze(*args, **options)


def test_excluded_layers_are_named() -> None:
    analysis = rf.analyze(network(), EXAMPLE, exclude=["3", "4"], methods="tucker", bins=None)
    assert [layer.name for layer in analysis.layers] == ["0"]
    assert "excluded" in analysis.kept["3"]
    assert "convolutions" in analysis.kept["6"]


def test_a_layer_that_is_never_called_is_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    analysis = rf.analyze(Half(), torch.zeros(1, 20), methods="svd")
    assert [layer.name for layer in analysis.layers] == ["used"]
    assert "not called" in analysis.kept["unused"]


def test_records_are_frozen(found: Any) -> None:
    space: Space = found.layers[0].spaces[0]
    with pytest.raises(AttributeError):
        space.size = 1
    assert replace(space, size=1).size == 1
    assert math.isclose(space.params.coverage, space.params.best - space.params.worst)
