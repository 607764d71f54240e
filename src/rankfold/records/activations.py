"""What a model's activations take in RAM, and what of it each layer decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankfold.records.layer import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """One run of a layer: what else is in RAM while the layer runs.

    Parameters
    ----------
    call : Call
        The sizes of what it reads and writes.
    others : int
        Bytes that are alive all the while; the layer's input among them if something later reads it again.
    input : int
        Bytes of the buffer that the layer reads, if it is the last to read it; else 0.
    output : int
        Bytes of the dense layer's result.
    item : int
        Bytes of one element.
    contiguous : bool
        Whether the input lies in memory in its own order; if not, a reshape of it is a copy.
    """

    call: Call
    others: int
    input: int
    output: int
    item: int
    contiguous: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationProfile:
    """The peak of a model's activation memory, taken apart by what decides it.

    The peak of a compressed model is the largest of `floor` and of what each layer's choice takes
    (`rankfold.cost.layer_ram`).

    Parameters
    ----------
    peak : int
        Bytes, of the dense model.
    floor : int
        Bytes: the peak over all operations that belong to no compressible layer.
    layers : mapping of str to tuple of LayerRun
        By the name of a compressible layer, its runs. A layer that the model's result does not depend on has none.
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
    call = data["call"]
    sizes = Call(
        batch=call["batch"], in_size=tuple(call["in_size"]), out_size=tuple(call["out_size"]), count=call["count"]
    )
    return LayerRun(
        call=sizes, others=data["others"], input=data["input"], output=data["output"], item=data["item"],
        contiguous=data["contiguous"],
    )  # fmt: skip
