"""Narrowings: JSON that a person can edit, ids that are checked, and arithmetic on layers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import ConfigError, CorruptArtifact, PlanMismatch
from rankfold.records import Axis, ChannelGroup, ChannelGroups, Choice, LayerInfo, Narrowing, Plan, narrowed_layer
from rankfold.records.narrowing import cut

GROUP = ChannelGroup(
    name="conv",
    width=4,
    axes=(
        Axis(name="conv", side="outputs"),
        Axis(name="bn", side="channels", offset=8),
        Axis(name="fc", side="inputs", repeat=3),
        Axis(name="scale", side=1, indices=((0, 4), (1, 5), (2, 6), (3, 7))),
    ),
    removed=(1, 3),
)
PLAN = Plan(layers={"conv": Choice(reason="kept")}, narrowing=Narrowing((GROUP,)))


def conv(ins: int, outs: int, groups: int = 1) -> LayerInfo:
    return LayerInfo(name="conv", kind="conv", in_channels=ins, out_channels=outs, kernel=(3,), groups=groups)


def test_a_plan_with_a_narrowing_survives_json_and_can_be_edited() -> None:
    text = PLAN.to_json()
    assert Plan.from_json(text) == PLAN
    edited = Plan.from_json(text.replace('"removed": [1, 3]', '"removed": [2]'))
    assert edited.narrowing.groups[0].kept == (0, 1, 3)
    assert "2 of 4 channels removed from 1 group" in PLAN.headline()


def test_plans_without_a_narrowing_stay_readable_by_earlier_versions() -> None:
    data = json.loads(Plan(layers={}).to_json())
    assert data["version"] == 1
    assert "narrowing" not in data
    assert json.loads(PLAN.to_json())["version"] == 2


def test_indices_that_each_module_loses() -> None:
    assert Narrowing((GROUP,)).removed() == {
        "conv": {"outputs": {1, 3}},
        "bn": {"channels": {9, 11}},
        "fc": {"inputs": {3, 4, 5, 9, 10, 11}},
        "scale": {1: {1, 5, 3, 7}},
    }


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True), min_size=1, max_size=5))
def test_an_axis_returns_the_indices_that_it_was_made_of(indices: list[list[int]]) -> None:
    axis = Axis.of("fc", "inputs", indices)
    assert [axis.at(c) for c in range(len(indices))] == [tuple(sorted(one)) for one in indices]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": [4]}, "channel 4"),
        ({"removed": [-1]}, "channel -1"),
        ({"removed": [0, 1, 2, 3]}, "all its 4 channels"),
        ({"removed": [1, 1]}, "twice"),
        ({"removed": "1"}, "'removed'"),
        ({"removed": [True]}, "'removed'"),
        ({"width": 0}, "'width'"),
        ({"width": 3}, "must have 3 entries"),
        ({"axes": []}, "'axes'"),
        ({"axes": [{"name": "conv", "side": "middle"}]}, "'side'"),
        ({"axes": [{"name": "conv", "side": -1}]}, "'side'"),
        ({"axes": [{"name": "conv", "side": "outputs", "offset": -1}]}, "'offset'"),
        ({"axes": [{"name": "conv", "side": "outputs", "indices": [0, 0, 1, 2]}]}, "different"),
        ({"axes": [{"name": "conv", "side": "outputs", "step": 2}]}, "unknown key 'step'"),
        ({"axes": [{"name": "conv", "side": "outputs", "repeat": 10**9}]}, "at most 16,777,216 indices"),
        ({"name": 3}, "'name'"),
        ({"keep": [1]}, "unknown key 'keep'"),
    ],
)
def test_a_malformed_group_is_refused(change: dict[str, object], message: str) -> None:
    data = json.loads(PLAN.to_json())
    data["narrowing"][0] |= change
    with pytest.raises(CorruptArtifact, match=message):
        Plan.from_json(json.dumps(data))


def test_groups_are_looked_up_by_the_layers_that_compute_them() -> None:
    other = ChannelGroup(
        name="stem", width=3, axes=(Axis(name="stem", side="outputs"), Axis(name="skip", side="outputs"))
    )
    groups = ChannelGroups(groups=(GROUP.without(()), other), fixed={"fc": "it is an output of the model"})
    assert groups.group("skip") is other
    assert [g.removed for g in groups.narrowing({"skip": [2], "conv": []})] == [(2,)]
    with pytest.raises(ConfigError, match="width of layer 'fc' must stay: it is an output"):
        groups.narrowing({"fc": [0]})
    with pytest.raises(ConfigError, match="no channel group 'nothing'. Its groups are 'conv', 'stem'"):
        groups.narrowing({"nothing": [0]})
    with pytest.raises(ConfigError, match="would lose all its 3 channels"):
        groups.narrowing({"stem": [0, 1, 2]})
    with pytest.raises(ConfigError, match="a second time"):
        groups.narrowing({"stem": [0], "skip": [1]})


def test_grouped_convolutions_lose_whole_groups_or_equal_parts_of_all() -> None:
    layer = conv(8, 12, groups=4)
    whole = narrowed_layer(layer, {"inputs": frozenset({2, 3}), "outputs": frozenset({3, 4, 5})})
    assert (whole.in_channels, whole.out_channels, whole.groups) == (6, 9, 3)
    equal = narrowed_layer(layer, {"outputs": frozenset({0, 4, 8, 11})})
    assert (equal.in_channels, equal.out_channels, equal.groups) == (8, 8, 4)
    assert [part.outputs for part in cut(layer, {"outputs": frozenset({0, 4, 8, 11})})] == [
        (1, 2),
        (0, 2),
        (0, 1),
        (0, 1),
    ]
    for removed in ({"inputs": frozenset({0})}, {"outputs": frozenset({3, 4, 5})}, {"outputs": frozenset(range(12))}):
        with pytest.raises(PlanMismatch, match="cannot be narrowed"):
            narrowed_layer(layer, removed)
    with pytest.raises(PlanMismatch, match="index 8 of the inputs"):
        narrowed_layer(layer, {"inputs": frozenset({8})})


@given(st.data())
def test_narrowing_twice_equals_narrowing_once(data: st.DataObject) -> None:
    first = data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=6))
    axes = (Axis(name="conv", side="outputs"),)
    one = ChannelGroup(name="conv", width=8, axes=axes, removed=tuple(first))
    second = data.draw(st.sets(st.integers(0, len(one.kept) - 1), max_size=len(one.kept) - 1))
    two = ChannelGroup(name="conv", width=len(one.kept), axes=axes, removed=tuple(second))
    both = Narrowing((one,)).then(Narrowing((two,)))
    assert both.groups[0].kept == tuple(one.kept[i] for i in two.kept)


def test_plans_compose_only_if_one_continues_the_other() -> None:
    pruned = Plan(layers={"conv": Choice()}, fingerprint={"conv": "wide"}, narrowing=Narrowing((GROUP,)))
    factored = Plan(layers={"conv": Choice(method="svd", ranks=(1,))}, fingerprint={"conv": "narrow"})
    both = pruned.then(factored)
    assert (both.layers, both.fingerprint, both.narrowing) == (factored.layers, pruned.fingerprint, pruned.narrowing)
    with pytest.raises(PlanMismatch, match="Remove channels first"):
        factored.then(pruned)
    with pytest.raises(PlanMismatch, match="only one of the two plans has layer 'fc'"):
        pruned.then(Plan(layers={"conv": Choice(), "fc": Choice()}))
    other = ChannelGroup(name="bn", width=2, axes=(Axis(name="bn", side="channels"),), removed=(0,))
    with pytest.raises(PlanMismatch, match="does not continue"):
        pruned.then(Plan(layers={"conv": Choice()}, narrowing=Narrowing((other,))))


@pytest.mark.parametrize("ids", [3, "1", None, ["1"], [1.0], [True, False]])
def test_ids_that_are_not_integers_are_refused(ids: Any) -> None:
    with pytest.raises(ConfigError, match=r"channel group 'conv'.*ids\. Got .* instead"):
        ChannelGroups(groups=(GROUP.without(()),)).narrowing({"conv": ids})


def test_ids_of_arrays_become_integers() -> None:
    (group,) = ChannelGroups(groups=(GROUP.without(()),)).narrowing({"conv": np.array([1, 0])})
    assert json.loads(group.to_json(""))["removed"] == [0, 1]
