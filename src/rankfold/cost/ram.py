"""Activation memory while a dense or factored layer runs, from shapes alone.

The stages of a factored layer run in the layer's place in the graph. The buffers that are alive around them are those
of the dense model, so the peak while a layer runs depends only on the choice for this layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankfold.cost.count import Flow, padding_sizes, stage_flows
from rankfold.records import BiasSpec, Blueprint, Call, ConvSpec, GaugedSpec, LayerInfo, ReshapeSpec, Stage
from rankfold.records.activations import ActivationProfile, LayerRun


def layer_ram(profile: ActivationProfile, layer: LayerInfo, blueprint: Blueprint | None = None) -> int:
    """Return the peak activation memory while a layer runs, in bytes.

    Parameters
    ----------
    profile : ActivationProfile
        Profile of the dense model.
    layer : LayerInfo
        One of the profile's layers.
    blueprint : Blueprint or None
        The factored layer; None keeps the layer.

    Returns
    -------
    int
        The maximum over all runs of everything that is alive, including the layer's input and output; 0 for a layer
        without influence on the model's output.
    """
    runs = profile.layers.get(layer.name, ())
    if blueprint is None:
        return max((run.others + run.input + run.output for run in runs), default=0)
    return max((_factored(run, layer, blueprint) for run in runs), default=0)


def _factored(run: LayerRun, layer: LayerInfo, blueprint: Blueprint) -> int:
    memory = _Memory(run.others + run.input, current=run.input)
    contiguous = run.contiguous
    for stage, before, after in stage_flows(blueprint, layer, _module_call(run.call, layer)):
        if isinstance(stage, ReshapeSpec):
            if not contiguous:
                memory.replace(before.numel * run.item)
        else:
            _run_stage(memory, stage, before, after, run.item)
        contiguous = True
    return memory.peak


def _module_call(call: Call, layer: LayerInfo) -> Call:
    """Return a call with the input size before padding: in the graph, padding other than zeros is an operation."""
    if layer.padding_mode == "zeros" or layer.kind == "linear":
        return call
    spec = ConvSpec(
        name="", in_channels=layer.in_channels, out_channels=layer.out_channels, kernel=layer.kernel,
        stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
    )  # fmt: skip
    size = tuple(n - pad for n, pad in zip(call.in_size, padding_sizes(spec), strict=True))
    return Call(batch=call.batch, in_size=size, out_size=call.out_size, count=call.count)


@dataclass(slots=True)
class _Memory:
    """Bytes alive while the stages of a layer run."""

    now: int
    current: int  # freed together with the last result; 0 while that is an input that is read again later
    peak: int = 0

    def __post_init__(self) -> None:
        self.peak = self.now

    def add(self, size: int) -> None:
        """Allocate a buffer."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def replace(self, size: int) -> None:
        """Compute a result of this size from the current one, which is freed."""
        self.add(size)
        self.now -= self.current
        self.current = size


def _run_stage(memory: _Memory, stage: Stage, before: Flow, after: Flow, item: int) -> None:
    result = after.numel * item
    if isinstance(stage, GaugedSpec):
        if stage.side == "input":
            _gauged_input(memory, stage, before, after, item)
        else:
            _gauged_output(memory, stage, after, item)
    elif isinstance(stage, BiasSpec):
        _add_in_place(memory, result)
    elif isinstance(stage, ConvSpec) and stage.padding_mode != "zeros":
        memory.replace(_padded(stage, before) * item)
        memory.replace(result)
    else:
        memory.replace(result)


def _gauged_input(memory: _Memory, stage: GaugedSpec, before: Flow, after: Flow, item: int) -> None:
    """``y = x[pivots] + rest(x[others])``, where x is the padded input, in shifted copies for a kernel."""
    base = stage.base
    positions = after.numel // (stage.groups * stage.rank) * item
    if isinstance(base, ConvSpec) and not base.pointwise:
        if any(padding_sizes(base)):
            memory.replace(_padded(base, before) * item)
        memory.replace(stage.groups * stage.size * positions)
    elif not stage.weights:
        return  # the result is the input
    result, others = after.numel * item, stage.groups * (stage.size - stage.rank) * positions
    if not stage.weights:
        memory.replace(result)
        return
    memory.add(others)
    memory.add(result)
    memory.now -= others
    memory.replace(result)  # the pivots, to which the rest is added
    memory.now -= result


def _gauged_output(memory: _Memory, stage: GaugedSpec, after: Flow, item: int) -> None:
    """``y = [x, rest(x)]``, reordered, plus the bias."""
    result = after.numel * item
    if stage.weights:
        rest = result // stage.size * (stage.size - stage.rank)
        memory.add(rest)
        memory.replace(result)
        memory.now -= rest
        memory.replace(result)
    if stage.base.bias:
        _add_in_place(memory, result)


def _add_in_place(memory: _Memory, size: int) -> None:
    """Add a bias to the current result, in its buffer unless that is an input that is read again later."""
    if not memory.current:
        memory.replace(size)


def _padded(spec: ConvSpec, flow: Flow) -> int:
    size = (n + pad for n, pad in zip(flow.size, padding_sizes(spec), strict=True))
    return flow.batch * flow.channels * math.prod(size)
