"""The activation memory that a layer takes while it runs, dense or factored, from shapes alone.

A factored layer's stages run inside the layer's own place in the graph. What is alive around them is known from the
dense model, so the peak while it runs depends on its own choice alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankfold.cost.count import Flow, padding_sizes, stage_flows
from rankfold.records import BiasSpec, Blueprint, Call, ConvSpec, GaugedSpec, LayerInfo, ReshapeSpec, Stage
from rankfold.records.activations import ActivationProfile, LayerRun


def layer_ram(profile: ActivationProfile, layer: LayerInfo, blueprint: Blueprint | None = None) -> int:
    """Return the peak activation memory while a layer runs.

    Parameters
    ----------
    profile : ActivationProfile
        Of the dense model; its sizes are those of the data type that it was made for.
    layer : LayerInfo
        One of the profile's layers.
    blueprint : Blueprint or None
        The factored layer's stages; None keeps the layer.

    Returns
    -------
    int
        Bytes, over all of the layer's runs: everything that is alive then, the layer's input and output included. 0
        for a layer on which the model's result does not depend.
    """
    runs = profile.layers.get(layer.name, ())
    return max((_dense(run) if blueprint is None else _factored(run, layer, blueprint) for run in runs), default=0)


def _dense(run: LayerRun) -> int:
    return run.others + run.input + run.output


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
    """Return a call with the layer's own input size: in the graph, an operation before it pads, unless with zeros."""
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
    """Bytes alive while the stages of a layer run.

    Parameters
    ----------
    now : int
        Alive now.
    current : int
        Of these, what goes when nothing needs the last result any more; 0 while that is an input with later readers.
    """

    now: int
    current: int
    peak: int = 0

    def __post_init__(self) -> None:
        self.peak = self.now

    def add(self, size: int) -> None:
        """Allocate a buffer."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def free(self, size: int) -> None:
        """Give a buffer back."""
        self.now -= size

    def replace(self, size: int) -> None:
        """Compute a result of this size from the current one, which goes."""
        self.add(size)
        self.free(self.current)
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
    """``y = x[pivots] + rest(x[others])``, x being the shifted copies of the padded input under a kernel."""
    base = stage.base
    positions = after.numel // (stage.groups * stage.rank) * item
    if isinstance(base, ConvSpec) and not base.pointwise:
        if any(padding_sizes(base)):
            memory.replace(_padded(base, before) * item)
        memory.replace(stage.groups * stage.size * positions)
    elif not stage.weights:
        return  # its result is its input
    result, others = after.numel * item, stage.groups * (stage.size - stage.rank) * positions
    if not stage.weights:
        memory.replace(result)
        return
    memory.add(others)
    memory.add(result)
    memory.free(others)
    memory.replace(result)  # the pivots, to which the rest is added
    memory.free(result)


def _gauged_output(memory: _Memory, stage: GaugedSpec, after: Flow, item: int) -> None:
    """``y = [x, rest(x)]`` in the order of the outputs, plus the bias."""
    result = after.numel * item
    if stage.weights:
        rest = result // stage.size * (stage.size - stage.rank)
        memory.add(rest)
        memory.replace(result)
        memory.free(rest)
        memory.replace(result)
    if stage.base.bias:
        _add_in_place(memory, result)


def _add_in_place(memory: _Memory, size: int) -> None:
    """Add a bias to the current result: in its own buffer, unless that is an input with later readers."""
    if not memory.current:
        memory.replace(size)


def _padded(spec: ConvSpec, flow: Flow) -> int:
    size = (n + pad for n, pad in zip(flow.size, padding_sizes(spec), strict=True))
    return flow.batch * flow.channels * math.prod(size)
