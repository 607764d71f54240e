"""Measured times of a model's layers, dense and factored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from rankfold._config import is_integer, is_number
from rankfold.candidates.cache import Cache
from rankfold.errors import NoisyMachine
from rankfold.methods import SVD
from rankfold.records import Blueprint, Call, LayerInfo
from rankfold.timing.alternating import NOISY, Reading, alternately
from rankfold.timing.contract import Runtime
from rankfold.timing.steps import PROBE, learned_block, surroundings
from rankfold.timing.target import Target

AT_ONCE = 24
"""Runs that alternate with a dense layer: each holds weights and activations."""
NEGLIGIBLE = 0.01
"""Share of the dense model's time that a layer's time may be uncertain by, however large that is for the layer."""
_PROBE_SIZES = {1: (1024,), 2: (28, 28), 3: (10, 10, 10)}

Key = tuple[LayerInfo, Call, Blueprint | None]
"""A layer without its name, the size of its input, and the stages or (None) the dense layer."""


def quiet_error(what: str, spread: float) -> NoisyMachine:
    """Return the error about a machine whose times are too uncertain."""
    return NoisyMachine(
        f"this machine is too busy to tell the time of {what}: the median is uncertain by {spread:.1%}, more than "
        f"{NOISY:.0%}. Stop other programs, or use fewer threads (target 'RUNTIME, threads=1')."
    )


class LayerTable:
    """Times of layers on a target; layers of the same geometry are measured once.

    The time of a factored layer is interpolated between measured ones (`rankfold.timing.steps`).

    Parameters
    ----------
    runtime, target : Runtime, Target
        Where layers run; the target is settled.
    calls : mapping of str to tuple of Call
        The calls of each layer, by name, at the target's batch size.
    whole : int
        Nanoseconds of the dense model.
    cache : Cache or None
        Measurements on disk.

    Attributes
    ----------
    measured : int
        Number of times measured so far, without those from the cache.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        calls: Mapping[str, Sequence[Call]],
        *,
        whole: int,
        cache: Cache | None = None,
    ) -> None:
        self.runtime, self.target, self.calls, self.whole, self.cache = runtime, target, calls, whole, cache
        self.measured = 0
        self._readings: dict[Key, Reading] = {}
        self._blocks: dict[tuple[Literal["conv", "linear"], int], int] = {}

    def measure(self, layer: LayerInfo, blueprints: Iterable[Blueprint]) -> None:
        """Measure what the times of these blueprints are interpolated from, and of the dense layer."""
        corners = dict.fromkeys(corner for b in blueprints for _, corner in surroundings(b, self.block(layer)))
        for call in self.calls.get(layer.name, ()):
            self._measure(geometry_of(layer), replace(call, count=1), list(corners))

    def ns(self, layer: LayerInfo, blueprint: Blueprint | None) -> int:
        """Return the time of all calls of a layer in one forward pass, in nanoseconds.

        Raises
        ------
        NoisyMachine
            If the machine is too busy to tell, and the uncertainty matters for the model.
        """
        reading = self.reading(layer, blueprint)
        if reading.noisy and reading.spread * reading.ns > NEGLIGIBLE * self.whole:
            raise quiet_error(layer.title, reading.spread)
        return reading.ns

    def reading(self, layer: LayerInfo, blueprint: Blueprint | None) -> Reading:
        """Return the time of all calls of a layer with its spread, the largest of those that it is read off."""
        self.measure(layer, [] if blueprint is None else [blueprint])
        corners = [(1.0, None)] if blueprint is None else surroundings(blueprint, self.block(layer))
        geometry, ns, dense, spread = geometry_of(layer), 0.0, 0, 0.0
        for call in self.calls.get(layer.name, ()):
            one = replace(call, count=1)
            dense += call.count * self._readings[geometry, one, None].ns
            for weight, corner in corners:
                reading = self._readings[geometry, one, corner]
                ns += call.count * weight * reading.ns
                spread = max(spread, reading.spread)
        return Reading(ns=round(ns), ratio=ns / dense if dense else 1.0, spread=spread)

    def block(self, layer: LayerInfo) -> int:
        """Return the number of channels in which the runtime computes layers of this kind, learned from times."""
        kind = (layer.kind, len(layer.kernel))
        if kind not in self._blocks:
            key = self._key("block of channels", list(kind))
            stored = None if self.cache is None else self.cache.get(key)
            if not (is_integer(stored) and stored >= 1):
                stored = self._learned(*kind)
                if self.cache is not None:
                    self.cache.put(key, stored)
            self._blocks[kind] = stored
        return self._blocks[kind]

    def _learned(self, kind: Literal["conv", "linear"], dims: int) -> int:
        probe, call = _probe(kind, dims)
        stages = {count: SVD().blueprint(probe, (count,)) for count in PROBE}
        runs = {count: self.runtime.layer(probe, made, call, self.target) for count, made in stages.items()}
        with self.runtime.session(self.target):
            readings = alternately(runs, PROBE[-1])
        self.measured += len(runs)
        return learned_block({count: reading.ratio for count, reading in readings.items()})

    def _measure(self, geometry: LayerInfo, call: Call, corners: Sequence[Blueprint]) -> None:
        """Measure what is missing, alternately with the dense layer."""
        missing: list[Blueprint | None] = []
        for corner in (None, *corners):
            key = (geometry, call, corner)
            if key not in self._readings:
                stored = self._stored(key)
                if stored is None:
                    missing.append(corner)
                else:
                    self._readings[key] = stored
        wanted = [corner for corner in missing if corner is not None]
        if not missing:
            return
        for start in range(0, max(len(wanted), 1), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            known = self._readings.get((geometry, call, None))
            runs = {c: self.runtime.layer(geometry, c, call, self.target) for c in (None, *part)}
            with self.runtime.session(self.target):
                readings = alternately(runs, None, reference_ns=None if known is None else known.ns)
            for corner, reading in readings.items():
                if corner is None and known is not None:
                    continue
                self._readings[geometry, call, corner] = reading
                self.measured += 1
                if self.cache is not None and not reading.noisy:
                    self.cache.put(self._reading_key((geometry, call, corner)), asdict(reading))

    def _stored(self, key: Key) -> Reading | None:
        value = None if self.cache is None else self.cache.get(self._reading_key(key))
        if not isinstance(value, dict) or set(value) != {"ns", "ratio", "spread"}:
            return None
        good = is_integer(value["ns"]) and all(is_number(v) and math.isfinite(v) and v >= 0 for v in value.values())
        return Reading(**value) if good else None

    def _reading_key(self, key: Key) -> dict[str, Any]:
        geometry, call, corner = key
        sizes = [call.batch, list(call.in_size)]
        stages = None if corner is None else [repr(stage) for stage in corner.stages]
        return self._key("time of a layer", [geometry.fingerprint, sizes, stages])

    def _key(self, what: str, of: Any) -> dict[str, Any]:
        return {"what": what, "of": of, "target": self.target.to_dict(), **self.runtime.facts(self.target)}


def geometry_of(layer: LayerInfo) -> LayerInfo:
    """Return a layer without what its time does not depend on."""
    return replace(
        layer, name="", aliases=(), ties=(), calls=(), skip=None, note=None, attention="", type_name="",
        input_first=False, dtype="float32",
    )  # fmt: skip


def _probe(kind: Literal["conv", "linear"], dims: int) -> tuple[LayerInfo, Call]:
    """Return a layer, and the size of its input, whose factors show the block."""
    if kind == "linear":
        return LayerInfo(name="", kind=kind, in_channels=256, out_channels=256), Call(batch=256)
    ones, size = (1,) * dims, _PROBE_SIZES[dims]
    layer = LayerInfo(
        name="", kind=kind, in_channels=64, out_channels=64, kernel=(3,) * dims, stride=ones, padding=ones,
        dilation=ones,
    )  # fmt: skip
    return layer, Call(batch=1, in_size=size, out_size=size)
