"""Plans: JSON that a person can edit and that reads back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import CorruptArtifact, NoMatchingLayer
from rankfold.records import Choice, Plan, Provenance

names = st.text(min_size=1, max_size=12)
options = st.dictionaries(names, st.one_of(st.integers(), st.booleans(), names), max_size=2)
errors = st.one_of(st.none(), st.floats(min_value=0, max_value=2))
factored = st.builds(
    Choice,
    method=names,
    ranks=st.lists(st.integers(1, 10**6), max_size=4).map(tuple),
    options=options,
    reason=st.one_of(st.none(), names),
    error=errors,
)
kept = st.builds(Choice, reason=names)
provenances = st.builds(
    Provenance,
    strategy=names,
    config=options,
    budget=st.one_of(st.none(), names),
    methods=st.lists(names, max_size=3).map(tuple),
    seed=st.integers(0, 2**63),
    reconstruct=st.one_of(st.none(), st.just("data")),
    weights_hash=st.one_of(st.none(), names),
    versions=st.dictionaries(names, names, max_size=2),
)
plans = st.builds(
    Plan,
    layers=st.dictionaries(names, st.one_of(factored, kept), max_size=4),
    fingerprint=st.dictionaries(names, names, max_size=4),
    provenance=provenances,
)

PLAN = Plan(
    layers={
        "conv": Choice(method="tucker", ranks=(4, 3), error=0.25),
        "fc": Choice(method="svd", ranks=(2,), options={"iterations": 3}, reason="clamped"),
        "head": Choice(reason="kept: last layer"),
    },
    fingerprint={"conv": "Conv2d 8->8 3x3 s1 g1", "fc": "Linear 8->8", "head": "Linear 8->2"},
    provenance=Provenance(strategy="energy", budget="params<=50%", methods=("svd", "tucker"), seed=3),
)


@given(plans)
def test_json_round_trip(plan: Plan) -> None:
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert list(again.layers) == list(plan.layers)
    assert again.to_json() == text


def test_file_round_trip(tmp_path: Path) -> None:
    file = PLAN.save(tmp_path / "deep" / "plan.json")
    assert Plan.load(file) == PLAN
    assert Plan.load(file.parent) == PLAN
    other = PLAN.override({"fc": None}).save(tmp_path / "other.json")
    assert Plan.load(other) != PLAN


def test_a_layer_is_a_line() -> None:
    lines = PLAN.to_json().splitlines()
    assert '    "conv": {"method": "tucker", "ranks": [4, 3], "error": 0.25},' in lines
    assert '    "head": {"keep": "kept: last layer"}' in lines


def test_override() -> None:
    new = PLAN.override({"conv": None, "head": Choice(method="svd", ranks=(1,))})
    assert new.kept == {"conv": "by hand"}
    assert sorted(new.factored) == ["fc", "head"]
    assert sorted(PLAN.factored) == ["conv", "fc"]
    with pytest.raises(NoMatchingLayer, match="'covn'.*'conv'"):
        PLAN.override({"covn": None})


def test_provenance_of_a_newer_version_may_know_more() -> None:
    data = json.loads(PLAN.to_json())
    data["provenance"]["planet"] = "earth"
    assert Plan.from_json(json.dumps(data)) == PLAN


def _edited(path: str, value: object) -> str:
    data = json.loads(PLAN.to_json())
    *parents, last = path.split("/")
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "rankfold-report", "not a rankfold plan"),
        ("version", "1", "version '1'"),
        ("version", True, "version True"),
        ("version", 0, "version 0"),
        ("version", 3, "version 3.*Upgrade"),
        ("layers", [], "must be objects"),
        ("fingerprint", 3, "must be objects"),
        ("provenance", [], "'provenance' must be an object"),
        ("provenance/seed", "three", "'seed' must be int"),
        ("provenance/seed", True, "'seed' must be int"),
        ("provenance/config", [1], "'config' must be dict"),
        ("provenance/versions", "1.0", "'versions' must be dict"),
        ("provenance/strategy", 3, "'strategy' must be str"),
        ("layers/fc", 3, "'fc'.*'method' or 'keep'.*Got 3"),
        ("layers/fc", None, "'fc'.*'method' or 'keep'.*Got None"),
        ("layers/fc", {}, "'fc'.*'method' must be a name"),
        ("layers/fc/method", 3, "'fc'.*'method' must be a name.*Got 3"),
        ("layers/fc/ranks", 3, "'fc'.*list of integers.*Got 3"),
        ("layers/fc/ranks", [2.0], r"'fc'.*list of integers.*Got \[2\.0\]"),
        ("layers/fc/ranks", [True], r"'fc'.*list of integers.*Got \[True\]"),
        ("layers/fc/ranks", ["2"], r"'fc'.*list of integers"),
        ("layers/fc/options", [1], "'fc'.*'options' must be an object"),
        ("layers/fc/error", "small", "'fc'.*'error'.*'small'"),
        ("layers/fc/error", float("nan"), "the number 'NaN', which is not finite"),
        ("layers/fc/error", -1, "'fc'.*'error'.*-1"),
        ("layers/fc/rank", [2], "'fc'.*unknown key 'rank'.*'ranks'"),
    ],
)
def test_edited_wrongly(path: str, value: object, message: str) -> None:
    with pytest.raises(CorruptArtifact, match=message):
        Plan.from_json(_edited(path, value))


@given(st.integers(0, len(PLAN.to_json()) - 3))
def test_truncated_anywhere(length: int) -> None:
    with pytest.raises(CorruptArtifact):
        Plan.from_json(PLAN.to_json()[:length])


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), names),
        lambda x: st.lists(x) | st.dictionaries(names, x),
        max_leaves=6,
    )
)
def test_foreign_json(value: object) -> None:
    with pytest.raises(CorruptArtifact):
        Plan.from_json(json.dumps(value))


def test_twice_the_same_layer() -> None:
    text = PLAN.to_json().replace('"fc": {"method"', '"fc": {"keep": "x"},\n    "fc": {"method"')
    with pytest.raises(CorruptArtifact, match="'fc' twice"):
        Plan.from_json(text)
