"""Interpolation of measured times over the channels between the stages of a factored layer.

Runtimes compute channels in blocks, so the time is a staircase: it grows after every multiple of the block and hardly
in between. `learned_block` reads the block off measured times. `surroundings` replaces a blueprint by blueprints with
block multiples of channels, with weights: the time of a stage is a product of its channel counts, so multilinear
interpolation between them is exact up to constant overheads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from rankfold.records import Blueprint, ConvSpec, GaugedSpec, LinearSpec, Stage

BLOCKS = (4, 8, 16, 32)
"""The possible blocks of more than one channel."""
PROBE = (*(count for low in range(8, 48, 4) for count in (low, low + 1)), 48)
"""Channel counts whose times show the block: before and after every possible step."""
SUDDEN = 0.4
"""Least share of the growth that must lie in the steps of a block."""
RIVAL = 0.75
"""A larger block is preferred if its steps hold at least this share of the growth in the steps of any block."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Channel counts of a blueprint that are equal in every candidate: those between stages, joined by depthwise ones.

    `places` are the positions between the stages, `count` is the number of channels and `unit` what divides it.
    """

    places: tuple[int, ...]
    count: int
    unit: int


def learned_block(times: Mapping[int, float]) -> int:
    """Return the number of channels in which a runtime computes, given the times at the counts of `PROBE`.

    It is the largest block whose steps, from each multiple to the next count, hold nearly all of the growth that any
    block's steps hold. 1 stands for a time that grows with every channel.
    """
    growth = times[PROBE[-1]] - times[PROBE[0]]
    if growth <= 0:
        return 1
    sudden = {
        block: sum(times[count + 1] - times[count] for count in PROBE[:-1] if count % block == 0) / growth
        for block in BLOCKS
    }
    most = max(sudden.values())
    if most < SUDDEN:
        return 1
    return max(block for block, share in sudden.items() if share >= RIVAL * most)


def surroundings(blueprint: Blueprint, block: int) -> list[tuple[float, Blueprint]]:
    """Return weights, which add up to 1, and the blueprints whose weighted times are the time of a blueprint.

    They have a power of two times the block as channels between stages. A blueprint of other stages than convolutions
    and linear layers stands for itself.
    """
    axes = _axes(blueprint, block)
    if axes is None:
        return [(1.0, _nameless(blueprint))]
    corners = []
    for ends in product(*(_ends(axis) for axis in axes)):
        weight = math.prod(share for share, _ in ends)
        counts = {place: count for axis, (_, count) in zip(axes, ends, strict=True) for place in axis.places}
        corners.append((weight, _with_channels(blueprint, counts)))
    return corners


def _ends(axis: Axis) -> list[tuple[float, int]]:
    """Return one or two counts around an axis' count, rounded up to its unit, with weights."""
    blocks = -(-axis.count // axis.unit)
    low = 1 << (blocks.bit_length() - 1)
    if low == blocks:
        return [(1.0, low * axis.unit)]
    share = (blocks - low) / low
    return [(1 - share, low * axis.unit), (share, 2 * low * axis.unit)]


def _axes(blueprint: Blueprint, block: int) -> list[Axis] | None:
    """Return the axes of a blueprint, without those tied to the layer's own channels; None if it has other stages."""
    stages = blueprint.stages
    plain = [stage for stage in stages if isinstance(stage, ConvSpec | LinearSpec)]
    if len(plain) != len(stages):
        return None
    runs: list[list[int]] = [[0]]
    for place, stage in enumerate(plain, start=1):
        if _is_depthwise(stage):
            runs[-1].append(place)
        else:
            runs.append([place])
    axes = []
    for run in runs:
        if 0 in run or len(plain) in run:
            continue
        near = [plain[place] for place in (run[0] - 1, run[-1])]
        groups = math.lcm(*(stage.groups for stage in near if isinstance(stage, ConvSpec)))
        axes.append(Axis(tuple(run), _channels(plain[run[0] - 1])[1], math.lcm(block, groups)))
    return axes


def _with_channels(blueprint: Blueprint, counts: Mapping[int, int]) -> Blueprint:
    """Return a blueprint without names and with other channels at some places."""
    stages: list[Stage] = []
    for place, stage in enumerate(blueprint.stages):
        inn, out = _channels(stage)
        inn, out = counts.get(place, inn), counts.get(place + 1, out)
        if isinstance(stage, ConvSpec):
            groups = inn if _is_depthwise(stage) else stage.groups
            stages.append(replace(stage, name="", in_channels=inn, out_channels=out, groups=groups))
        elif isinstance(stage, LinearSpec):
            stages.append(replace(stage, name="", in_features=inn, out_features=out))
    return Blueprint(tuple(stages))


def _nameless(blueprint: Blueprint) -> Blueprint:
    return Blueprint(tuple(s if isinstance(s, GaugedSpec) else replace(s, name="") for s in blueprint.stages))


def _channels(stage: Stage) -> tuple[int, int]:
    if isinstance(stage, LinearSpec):
        return stage.in_features, stage.out_features
    assert isinstance(stage, ConvSpec)
    return stage.in_channels, stage.out_channels


def _is_depthwise(stage: Stage) -> bool:
    return isinstance(stage, ConvSpec) and 1 < stage.groups == stage.in_channels == stage.out_channels
