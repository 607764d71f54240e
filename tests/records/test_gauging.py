"""Which bonds of a blueprint are gauged, where, and what that saves; from shapes alone."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest

from rankfold import methods
from rankfold.records import (
    BiasSpec,
    Blueprint,
    LayerInfo,
    LinearSpec,
    ReshapeSpec,
    gauge_blueprint,
    gauge_obstacle,
    gauging,
)

CONV = LayerInfo(
    name="c", kind="conv", in_channels=24, out_channels=32, kernel=(3, 3), stride=(2, 1), padding=(1, 1),
    dilation=(1, 1), bias=True,
)  # fmt: skip
LINEAR = LayerInfo(name="f", kind="linear", in_channels=24, out_channels=32, bias=True)
GROUPED = replace(CONV, groups=4)
TRANSPOSED = replace(CONV, transposed=True, output_padding=(0, 0))
VOLUME = replace(CONV, kernel=(3, 3, 3), stride=(1, 1, 1), padding="same", dilation=(1, 1, 1), padding_mode="circular")

# method, layer, ranks, gauged stages as (name, side), parameters saved
CASES: list[tuple[str, LayerInfo, tuple[int, ...], list[tuple[str, str]], int]] = [
    ("svd", LINEAR, (8,), [("input", "input")], 64),
    ("qr", LINEAR, (8,), [("input", "input")], 64),
    # Few outputs without a bias are moved with less effort than many inputs.
    ("svd", replace(LINEAR, out_channels=10, bias=False), (4,), [("output", "output")], 16),
    ("svd", CONV, (8,), [("output", "output")], 64),
    ("svd", GROUPED, (5,), [("output", "output")], 4 * 25),
    ("svd", TRANSPOSED, (8,), [("output", "output")], 64),
    ("tucker", CONV, (10, 6), [("input", "input"), ("output", "output")], 100 + 36),
    ("tucker", CONV, (32, 6), [("input", "input")], 36),
    ("tucker", CONV, (10, 24), [("output", "output")], 100),
    ("tucker", TRANSPOSED, (10, 6), [("input", "input"), ("output", "output")], 100 + 36),
    ("tt3", GROUPED, (5, 3), [("input", "input"), ("output", "output")], 4 * (25 + 9)),
    ("tt", CONV, (6, 18, 12), [("input", "input"), ("axis0", "input"), ("output", "output")], 36 + 18**2 + 144),
    ("tt", CONV, (24, 30, 32), [("input", "input"), ("axis0", "input"), ("output", "output")], 576 + 900 + 1024),
    ("tt", TRANSPOSED, (6, 18, 12), [("input", "input"), ("output", "output")], 36 + 144),
    (
        "tt", VOLUME, (4, 6, 8, 10),
        [("input", "input"), ("axis0", "input"), ("axis1", "input"), ("output", "output")], 16 + 36 + 64 + 100,
    ),
    ("spatial_svd", CONV, (20,), [("vertical", "input")], 400),
    ("spatial_svd", GROUPED, (10,), [("vertical", "input")], 4 * 100),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "ranks", "stages", "saved"), CASES)
def test_every_bond_that_can_be_gauged_is(
    name: str, layer: LayerInfo, ranks: tuple[int, ...], stages: list[tuple[str, str]], saved: int
) -> None:
    plain = methods.get(name).blueprint(layer, ranks)
    fixed = gauge_blueprint(plain)
    assert [(s.name, s.side) for s in fixed.gauged] == stages
    assert plain.params - fixed.params == saved == sum(s.groups * s.rank**2 for s in fixed.gauged)
    assert fixed.plain == plain
    assert fixed.factor_shapes == plain.factor_shapes
    assert fixed.indices == sum(s.groups * s.size for s in fixed.gauged) > 0 == plain.indices
    assert gauge_obstacle(plain) is None
    assert gauge_blueprint(fixed.plain) == fixed


OBSTACLES: list[tuple[str, LayerInfo, Any, str]] = [
    ("cp", CONV, (7,), "single channels"),
    ("filterwise_cp", CONV, (2,), "single channels"),
    ("ttm", LINEAR, (5,), "reshape"),
    ("svd", LINEAR, (1,), "single channels"),
    ("spatial_svd", TRANSPOSED, (8,), "kernels"),
    ("tucker", CONV, (32, 24), "single stage"),
]


@pytest.mark.parametrize(("name", "layer", "ranks", "reason"), OBSTACLES)
def test_what_cannot_be_gauged_comes_back_as_it_is_with_the_reason(
    name: str, layer: LayerInfo, ranks: tuple[int, ...], reason: str
) -> None:
    plain = methods.get(name).blueprint(layer, ranks)
    assert gauge_blueprint(plain) == plain
    assert reason in str(gauge_obstacle(plain))


def test_a_useless_rank_between_kernels_is_left_alone() -> None:
    fixed = gauge_blueprint(methods.get("tt").blueprint(CONV, (2, 10, 12)))
    assert [s.name for s in fixed.gauged] == ["input", "output"]  # 2 inputs at 3 positions have no 10 pivots


def test_a_bias_or_reshape_between_two_stages_is_in_the_way() -> None:
    first, last = (LinearSpec(name=n, in_features=9, out_features=9) for n in "ab")
    between = Blueprint((replace(first, bias=True), last))
    assert gauge_obstacle(between) == "there is a bias at the bond"
    assert "reshape" in str(gauge_obstacle(Blueprint((first, ReshapeSpec(name="r", tail=(3, 3)), last))))
    assert gauge_obstacle(Blueprint((first, last, BiasSpec(name="o", features=9)))) is None


def test_a_chain_of_pointwise_stages_is_gauged_at_every_bond() -> None:
    chain = Blueprint(tuple(LinearSpec(name=n, in_features=9, out_features=9) for n in "abcd"))
    fixed = gauge_blueprint(chain)
    assert chain.params - fixed.params == 3 * 81
    assert [(s.name, s.side) for s in fixed.gauged] == [("a", "input"), ("b", "input"), ("c", "input")]


def test_examples() -> None:
    assert doctest.testmod(gauging).failed == 0
