"""A runtime whose times are computed, for tests that may not depend on a real clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rankfold.inventory import inspect
from rankfold.records import Blueprint, Call, ConvSpec, LayerInfo, LinearSpec
from rankfold.timing import Run, Runtime, Target, registry

BLOCK = 8
"""Channels in which the runtime computes."""


@dataclass
class Clockwork:
    """Settings of the runtime ``clockwork``, and what it was asked to time.

    `stage_ns` is the overhead of a stage, `surprise_ns` what a stage costs in a whole model in addition, `noise` the
    relative size of alternating errors, and `drift` the share by which every run is slower than the one before.
    """

    stage_ns: int = 200
    surprise_ns: int = 0
    noise: float = 0.0
    drift: float = 0.0
    layers: list[tuple[LayerInfo, Blueprint | None]] = field(default_factory=list)
    models: int = 0
    runs: int = 0

    def work(self, inn: int, out: int, kernel: int, groups: int, positions: int) -> int:
        """Return the nanoseconds of one stage: both channel counts in blocks of 8."""
        blocks = [-(-channels // BLOCK) * BLOCK for channels in (inn, out)]
        return self.stage_ns + math.prod(blocks) * kernel * positions // max(groups, 1) // 16

    def run(self, ns: float) -> Run:
        """Return a run that takes some time."""

        def once() -> float:
            self.runs += 1
            wave = (0.0, 1.0, -1.0, 0.5, -0.5)[self.runs % 5]
            return ns * (1 + self.noise * wave) * (1 + self.drift) ** self.runs * 1e-9

        return once

    def layer(self, layer: LayerInfo, blueprint: Blueprint | None, call: Call) -> int:
        """Return the nanoseconds of a layer."""
        positions = call.batch * math.prod(call.out_size)
        if blueprint is None:
            return self.work(layer.in_channels, layer.out_channels, layer.kernel_numel, layer.groups, positions)
        total = 0
        for stage in blueprint.stages:
            if isinstance(stage, LinearSpec):
                total += self.work(stage.in_features, stage.out_features, 1, 1, positions)
            elif isinstance(stage, ConvSpec):
                kernel = math.prod(stage.kernel)
                total += self.work(stage.in_channels, stage.out_channels, kernel, stage.groups, positions)
        return total


@contextmanager
def clockwork() -> Iterator[Clockwork]:
    """Register the runtime ``clockwork`` during the block."""
    settings = Clockwork()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ClockworkRuntime(Runtime):
        name = "clockwork"

        def facts(self, target: Target) -> dict[str, Any]:
            return {"device": f"a clock, {target.device}"}

        def layer(self, layer: LayerInfo, blueprint: Blueprint | None, call: Call, target: Target) -> Run:  # noqa: ARG002
            settings.layers.append((layer, blueprint))
            return settings.run(settings.layer(layer, blueprint, call))

        def model(self, model: nn.Module, inputs: Any, target: Target) -> Run:  # noqa: ARG002
            settings.models += 1
            layers = [layer for layer in inspect(model, inputs) if layer.calls]
            times = [settings.layer(layer, None, call) for layer in layers for call in layer.calls]
            return settings.run(sum(times) + settings.surprise_ns * len(layers))

    registry.register(ClockworkRuntime, summary="computed times")
    try:
        yield settings
    finally:
        del registry._entries["clockwork"]
