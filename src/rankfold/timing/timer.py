"""The time of whole models on a target, and of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from rankfold.candidates.cache import Cache
from rankfold.inventory import inspect
from rankfold.records import Plan
from rankfold.storage.artifact import rebuild
from rankfold.surgery import factored_layers
from rankfold.surgery.apply import inner_plan
from rankfold.surgery.narrowed import narrowed_copy
from rankfold.timing.alternating import MODEL_SECONDS, Reading, alternately
from rankfold.timing.contract import Run, Runtime, get
from rankfold.timing.layers import LayerTable, quiet_error
from rankfold.timing.target import Target
from rankfold.timing.torch_runtime import fill_


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The time of a model and of the dense one, timed alternately.

    Parameters
    ----------
    dense_ns, ns : int
        Medians.
    ratio : float
        Median of the ratios in the same round: model / dense.
    spread : float
        Relative standard error of the ratio.
    """

    dense_ns: int
    ns: int
    ratio: float
    spread: float


class Timer:
    """Times one model, its layers and its compressed forms on a target.

    Parameters
    ----------
    model : Module
        The dense model; left unchanged.
    example_input : object
        What the model is called with.
    target : Target
        Where it runs.
    cache : Cache or None
        Measurements of layers on disk.

    Raises
    ------
    UnknownNameError
        If the runtime is unknown.
    ConfigError
        If the target is not available here.
    """

    def __init__(self, model: nn.Module, example_input: Any, target: Target, cache: Cache | None = None) -> None:
        self.runtime: Runtime = get(target.runtime)
        self.target = target.settled(model, example_input, arranged=self.runtime.arranged)
        self.runtime.check(self.target)
        self.model, self.cache = model, cache
        self._example = example_input

    @cached_property
    def layers(self) -> LayerTable:
        """The times of the layers, and of the dense model."""
        inventory = inspect(self.model, self.target.resized(self._example))
        calls = {layer.name: layer.calls for layer in inventory}
        return LayerTable(self.runtime, self.target, calls, whole=self.dense.ns, cache=self.cache)

    @cached_property
    def dense(self) -> Reading:
        """The time of the dense model."""
        with self.runtime.session(self.target):
            reading = alternately({"dense": self._dense_run}, "dense", limit_s=MODEL_SECONDS)["dense"]
        if reading.noisy:
            raise quiet_error("the dense model", reading.spread)
        return reading

    def compare(self, model: nn.Module) -> Comparison:
        """Time a compressed model alternately with the dense one.

        Raises
        ------
        NoisyMachine
            If the machine is too busy to tell.
        """
        with self.runtime.session(self.target):
            runs = {"dense": self._dense_run, "model": self._run(model)}
            readings = alternately(runs, "dense", limit_s=MODEL_SECONDS)
        dense, other = readings["dense"], readings["model"]
        if other.noisy:
            raise quiet_error("the compressed model", other.spread)
        return Comparison(dense_ns=dense.ns, ns=other.ns, ratio=other.ratio, spread=other.spread)

    def compare_plan(self, plan: Plan) -> Comparison:
        """Time the model of a plan, with random factors, alternately with the dense one."""
        model = rebuild(narrowed_copy(self.model, plan.narrowing), inner_plan(plan))
        for factored in factored_layers(model).values():
            fill_(factored)
        return self.compare(model)

    @cached_property
    def _dense_run(self) -> Run:
        return self._run(self.model)

    def _run(self, model: nn.Module) -> Run:
        return self.runtime.model(model, self.target.inputs(self._example), self.target)
