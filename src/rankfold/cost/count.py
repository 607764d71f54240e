"""Parameters, MACs, feature maps and bytes of any blueprint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankfold.records import (
    BiasSpec,
    Blueprint,
    Call,
    ConvSpec,
    Cost,
    GaugedSpec,
    LayerInfo,
    LinearSpec,
    ReshapeSpec,
    Size,
    gauge_blueprint,
)

INDEX_BYTES = 4
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class _Flow:
    """What flows between two stages: batch elements, channels, spatial sizes."""

    batch: int
    channels: int
    size: Size

    @property
    def numel(self) -> int:
        return self.batch * self.channels * math.prod(self.size)


def blueprint_cost(blueprint: Blueprint, layer: LayerInfo) -> Cost:
    """Return the cost of a factored layer on the layer's calls.

    MACs count what `torch.utils.flop_counter.FlopCounterMode` counts (half of its FLOPs): products with weights; biases
    and reshapes are free, and so are the copies that a gauged stage makes. Feature maps are the outputs of all stages
    with weights. Bytes are those of the parameters and of a gauged stage's indices.
    """
    macs = fm = 0
    for call in layer.calls:
        stage_macs, stage_fm = _one_call(blueprint, layer, call)
        macs += stage_macs * call.count
        fm += stage_fm * call.count
    size = blueprint.params * ITEM_BYTES[layer.dtype] + blueprint.indices * INDEX_BYTES
    return Cost(params=blueprint.params, macs=macs, fm=fm, weight_bytes=size)


def gauged_cost(blueprint: Blueprint, layer: LayerInfo, *, gauge: bool = True) -> tuple[Cost, bool]:
    """Return the cost of a factored layer, gauged if that is allowed and wins, and whether it is.

    It wins with fewer parameters, no more MACs and no more bytes (indices of the pivots included).
    """
    plain = blueprint_cost(blueprint, layer)
    if not gauge:
        return plain, False
    fixed = gauge_blueprint(blueprint)
    if not fixed.gauged:
        return plain, False
    cost = blueprint_cost(fixed, layer)
    wins = cost.params < plain.params and cost.macs <= plain.macs and cost.weight_bytes <= plain.weight_bytes
    return (cost, True) if wins else (plain, False)


def _one_call(blueprint: Blueprint, layer: LayerInfo, call: Call) -> tuple[int, int]:
    flow = _Flow(call.batch, layer.in_channels, call.in_size)
    macs = fm = 0
    for stage in blueprint.stages:
        spec = stage.base if isinstance(stage, GaugedSpec) else stage
        after = _after(spec, flow)
        if isinstance(spec, ConvSpec):
            positions = flow.size if spec.transposed else after.size
            macs += stage.weights * math.prod(positions) * flow.batch
            fm += after.numel
        elif isinstance(spec, LinearSpec):
            macs += stage.weights * flow.batch
            fm += after.numel
        flow = after
    return macs, fm


def _after(stage: ConvSpec | LinearSpec | ReshapeSpec | BiasSpec, flow: _Flow) -> _Flow:
    if isinstance(stage, ConvSpec):
        return _Flow(flow.batch, stage.out_channels, _conv_size(stage, flow.size))
    if isinstance(stage, LinearSpec):
        return _Flow(flow.batch, stage.out_features, ())
    if isinstance(stage, BiasSpec):
        return flow
    return _Flow(flow.numel // math.prod(stage.tail), stage.tail[0], stage.tail[1:])


def _conv_size(stage: ConvSpec, size: Size) -> Size:
    """Return the output sizes by the formulas in the documentation of ``torch.nn.Conv2d`` and ``ConvTranspose2d``."""
    if stage.padding == "same":
        return size
    out = []
    for axis, n in enumerate(size):
        pad = 0 if isinstance(stage.padding, str) else stage.padding[axis]
        reach = stage.dilation[axis] * (stage.kernel[axis] - 1)
        if stage.transposed:
            out.append((n - 1) * stage.stride[axis] - 2 * pad + reach + stage.output_padding[axis] + 1)
        else:
            out.append((n + 2 * pad - reach - 1) // stage.stride[axis] + 1)
    return tuple(out)
