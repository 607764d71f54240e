"""Blocks are learned from times, and interpolation between blocks keeps the steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from rankfold import methods
from rankfold.records import Blueprint, Call, ConvSpec, LayerInfo, LinearSpec
from rankfold.timing.steps import PROBE, learned_block, surroundings

CONV = LayerInfo(
    name="c", kind="conv", in_channels=48, out_channels=64, kernel=(3, 3), stride=(1, 1), padding=(1, 1),
    dilation=(1, 1), calls=(Call(batch=1, in_size=(8, 8), out_size=(8, 8)),),
)  # fmt: skip
LINEAR = LayerInfo(name="l", kind="linear", in_channels=48, out_channels=64)


def rounded(count: int, block: int) -> int:
    return -(-count // block) * block


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_the_block_is_read_off_the_times(block: int) -> None:
    assert learned_block({count: 5.0 + rounded(count, block) for count in PROBE}) == block


@pytest.mark.parametrize("time", [lambda count: 5.0 + count, lambda _: 5.0, lambda count: 60.0 - count])
def test_times_without_steps_have_no_block(time: Callable[[int], float]) -> None:
    assert learned_block({count: time(count) for count in PROBE}) == 1


def test_small_errors_do_not_hide_the_block() -> None:
    wave = (0.3, -0.2, 0.1, -0.3, 0.2)
    assert learned_block({count: 5.0 + rounded(count, 8) + wave[i % 5] for i, count in enumerate(PROBE)}) == 8


def stage_time(stage: object, block: int) -> float:
    if isinstance(stage, ConvSpec):
        inn, out, size = stage.in_channels, stage.out_channels, math.prod(stage.kernel)
        size /= rounded(inn, block) if stage.groups == inn else stage.groups
    else:
        assert isinstance(stage, LinearSpec)
        inn, out, size = stage.in_features, stage.out_features, 1
    return 100 + rounded(inn, block) * rounded(out, block) * size


def time_of(blueprint: Blueprint, block: int) -> float:
    return sum(stage_time(stage, block) for stage in blueprint.stages)


@pytest.mark.parametrize("name", ["svd", "tucker", "spatial_svd", "tt", "cp", "qr"])
@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_interpolation_is_exact_for_products_of_blocks(name: str, layer: LayerInfo) -> None:
    method = methods.get(name)
    if method.supports(layer) is not None:
        pytest.skip("the method does not support the layer")
    full = method.max_ranks(layer)
    for share in (0.05, 0.3, 0.43, 0.77):
        ranks = tuple(max(1, int(share * most)) for most in full)
        blueprint = method.blueprint(layer, ranks)
        corners = surroundings(blueprint, 8)
        assert math.isclose(sum(weight for weight, _ in corners), 1)
        assert {len(corner.stages) for _, corner in corners} == {len(blueprint.stages)}
        predicted = sum(weight * time_of(corner, 8) for weight, corner in corners)
        assert predicted == pytest.approx(time_of(blueprint, 8))


def test_ranks_in_one_block_have_one_time_and_few_blueprints_are_measured() -> None:
    method = methods.get("svd")
    read = {rank: surroundings(method.blueprint(CONV, (rank,)), 8) for rank in range(1, 65)}
    assert read[9] == read[16] != read[17]
    measured = {corner for corners in read.values() for _, corner in corners}
    assert sorted(b.stages[0].out_channels for b in measured if isinstance(b.stages[0], ConvSpec)) == [8, 16, 32, 64]


def test_groups_stay_divisible() -> None:
    grouped = LayerInfo(
        name="g", kind="conv", in_channels=36, out_channels=60, kernel=(3, 3), stride=(1, 1), padding=(1, 1),
        dilation=(1, 1), groups=3,
    )  # fmt: skip
    for name in ("svd", "tucker"):
        method = methods.get(name)
        for _, corner in surroundings(method.blueprint(grouped, tuple(5 for _ in method.max_ranks(grouped))), 8):
            for stage in corner.stages:
                assert isinstance(stage, ConvSpec)
                assert stage.in_channels % stage.groups == stage.out_channels % stage.groups == 0


def test_other_stages_stand_for_themselves() -> None:
    blueprint = methods.get("ttm").blueprint(LINEAR, (2,) * len(methods.get("ttm").max_ranks(LINEAR)))
    ((weight, same),) = surroundings(blueprint, 8)
    assert weight == 1
    assert same.params == blueprint.params
