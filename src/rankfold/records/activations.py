"""Activation memory of a model, and the share that depends on each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankfold.records.layer import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """Memory during one run of a layer, in bytes.

    Parameters
    ----------
    call : Call
        Sizes of the input and the output.
    others : int
        Buffers that are alive throughout the run, including the layer's input if it is read again later.
    input : int
        The layer's input if this is its last reader, otherwise 0.
    output : int
        The dense layer's output.
    item : int
        One element.
    contiguous : bool
        Whether the input is contiguous; otherwise, reshaping it takes a copy.
    """

    call: Call
    others: int
    input: int
    output: int
    item: int
    contiguous: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationProfile:
    """The peak activation memory of a model, by layer.

    The peak of a compressed model is the maximum of `floor` and of the memory of each layer's choice
    (`rankfold.cost.layer_ram`).

    Parameters
    ----------
    peak : int
        Peak of the dense model, in bytes.
    floor : int
        Peak over all operations outside of compressible layers, in bytes.
    layers : mapping of str to tuple of LayerRun
        The runs of each compressible layer, by name. Layers without influence on the model's output are missing.
    """

    peak: int
    floor: int
    layers: Mapping[str, tuple[LayerRun, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-ready values."""
        layers = {name: [asdict(run) for run in runs] for name, runs in self.layers.items()}
        return {"peak": self.peak, "floor": self.floor, "layers": layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActivationProfile:
        """Read what `to_dict` returned, also after a round trip through JSON."""
        layers = {name: tuple(map(_read_run, runs)) for name, runs in data["layers"].items()}
        return cls(peak=data["peak"], floor=data["floor"], layers=layers)


def _read_run(data: Mapping[str, Any]) -> LayerRun:
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["call"].items()}
    run: dict[str, Any] = {**data, "call": Call(**sizes)}
    return LayerRun(**run)
