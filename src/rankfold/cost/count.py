"""Parameters, MACs, feature maps and bytes of blueprints."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    Stage,
    gauge_blueprint,
)
from rankfold.records.deploy import check_deploy_dtype, stage_bytes


@dataclass(frozen=True, slots=True)
class Flow:
    """Shape of the data between two stages."""

    batch: int
    channels: int
    size: Size

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.batch * self.channels * math.prod(self.size)


def blueprint_cost(blueprint: Blueprint, layer: LayerInfo, *, deploy_dtype: str | None = None) -> Cost:
    """Return the cost of a factored layer on the layer's calls.

    As in `rankfold.inventory.operations.OperationCounter`, MACs are products with weights; biases, reshapes and the
    copies of a gauged stage are free. Feature maps are the outputs of all stages with weights. Bytes are those of
    `rankfold.records.deploy.stage_bytes`. Raises `UnknownNameError` for an unknown deployment data type.
    """
    check_deploy_dtype(deploy_dtype)
    macs = fm = 0
    for call in layer.calls:
        stage_macs, stage_fm = _one_call(blueprint, layer, call)
        macs += stage_macs * call.count
        fm += stage_fm * call.count
    size = sum(stage_bytes(stage, layer.dtype, deploy_dtype) for stage in blueprint.stages)
    return Cost(params=blueprint.params, macs=macs, fm=fm, weight_bytes=size)


def gauged_cost(
    blueprint: Blueprint, layer: LayerInfo, *, gauge: bool = True, deploy_dtype: str | None = None
) -> tuple[Cost, bool]:
    """Return the cost of a factored layer, gauged if that is allowed and beneficial, and whether it is gauged.

    A gauge is beneficial if it takes fewer parameters, no more MACs and no more bytes, including the indices.
    """
    plain = blueprint_cost(blueprint, layer, deploy_dtype=deploy_dtype)
    if not gauge:
        return plain, False
    cost = blueprint_cost(gauge_blueprint(blueprint), layer, deploy_dtype=deploy_dtype)
    wins = cost.params < plain.params and cost.macs <= plain.macs and cost.weight_bytes <= plain.weight_bytes
    return (cost, True) if wins else (plain, False)


def _one_call(blueprint: Blueprint, layer: LayerInfo, call: Call) -> tuple[int, int]:
    macs = fm = 0
    for stage, before, after in stage_flows(blueprint, layer, call):
        spec = stage.base if isinstance(stage, GaugedSpec) else stage
        if isinstance(spec, ConvSpec):
            positions = before.size if spec.transposed else after.size
            macs += stage.weights * math.prod(positions) * before.batch
            fm += after.numel
        elif isinstance(spec, LinearSpec):
            macs += stage.weights * before.batch
            fm += after.numel
    return macs, fm


def stage_flows(blueprint: Blueprint, layer: LayerInfo, call: Call) -> Iterator[tuple[Stage, Flow, Flow]]:
    """Yield every stage with the shapes of its input and output at one call of the layer."""
    flow = Flow(call.batch, layer.in_channels, call.in_size)
    for stage in blueprint.stages:
        after = _after(stage.base if isinstance(stage, GaugedSpec) else stage, flow)
        yield stage, flow, after
        flow = after


def padding_sizes(spec: ConvSpec) -> Size:
    """Return the number of positions that the padding adds to each axis, on both sides together."""
    if spec.padding == "same":
        return tuple(d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True))
    return tuple(0 if isinstance(spec.padding, str) else 2 * spec.padding[axis] for axis in range(len(spec.kernel)))


def _after(stage: ConvSpec | LinearSpec | ReshapeSpec | BiasSpec, flow: Flow) -> Flow:
    if isinstance(stage, ConvSpec):
        return Flow(flow.batch, stage.out_channels, _conv_size(stage, flow.size))
    if isinstance(stage, LinearSpec):
        return Flow(flow.batch, stage.out_features, ())
    if isinstance(stage, BiasSpec):
        return flow
    return Flow(flow.numel // math.prod(stage.tail), stage.tail[0], stage.tail[1:])


def _conv_size(stage: ConvSpec, size: Size) -> Size:
    """Return the output sizes, by the formulas of ``torch.nn.Conv2d`` and ``torch.nn.ConvTranspose2d``."""
    if stage.padding == "same":
        return size
    out, padding = [], padding_sizes(stage)
    for axis, n in enumerate(size):
        reach = stage.dilation[axis] * (stage.kernel[axis] - 1)
        if stage.transposed:
            out.append((n - 1) * stage.stride[axis] - padding[axis] + reach + stage.output_padding[axis] + 1)
        else:
            out.append((n + padding[axis] - reach - 1) // stage.stride[axis] + 1)
    return tuple(out)
