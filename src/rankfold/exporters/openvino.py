"""``openvino``: for OpenVINO, on Intel and Arm processors."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold._tensors import tensors_of
from rankfold.exporters.contract import Exporter, Runner, registry
from rankfold.exporters.program import converted
from rankfold.inventory import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVINO(Exporter):
    """OpenVINO's intermediate representation: the graph, and the weights in a second file."""

    name = "openvino"
    suffix = ".xml"
    weights_suffix = ".bin"
    packages = ("openvino",)
    extra = "openvino"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the graph and the weights, in the model's data type.

        Raises
        ------
        ModelError
            If an operation has no counterpart in OpenVINO.
        """
        openvino = importlib.import_module("openvino")
        graph, weights = path.with_suffix(".xml"), self.weights_file(path)
        with quiet():
            made = converted(program, "OpenVINO", openvino.convert_model)
            openvino.serialize(made, str(graph), str(weights))  # only writes *.xml
        graph.replace(path)

    def open(self, path: Path) -> Runner:
        """Return the compiled model as a function, in float32 even if the processor has shorter types."""
        openvino = importlib.import_module("openvino")
        weights = self.weights_file(path)
        assert weights is not None
        model = openvino.Core().read_model(path.read_bytes(), weights.read_bytes())
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(inputs: Any) -> list[Tensor]:
            results = compiled([tensor.detach().cpu().numpy() for tensor in tensors_of(inputs)])
            return [torch.from_numpy(results[index].copy()) for index in range(len(results))]

        return run


registry.register(OpenVINO, summary="for OpenVINO, .xml with a .bin")
