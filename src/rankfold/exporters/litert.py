"""``litert``: for LiteRT, formerly TensorFlow Lite."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold._tensors import tensors_of
from rankfold.exporters.contract import Exporter, Runner, registry
from rankfold.exporters.program import converted
from rankfold.exporters.rewrites import cropped_outputs, volumes_as_images
from rankfold.inventory import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRT(Exporter):
    """A flat buffer of LiteRT, for batches of the example's size; its converter knows no others."""

    name = "litert"
    suffix = ".tflite"
    batch_sizes = "fixed"
    packages = ("litert_torch", "ai_edge_litert")
    extra = "litert"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the model in LiteRT's operators; numbers of 64 bits become numbers of 32 bits.

        Raises
        ------
        ModelError
            If an operation has no counterpart in LiteRT.
        """
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
            path.write_bytes(converted(program, "LiteRT", _content))

    def open(self, path: Path) -> Runner:
        """Return an interpreter as a function."""
        with quiet():
            runtime = importlib.import_module("ai_edge_litert.interpreter")
        interpreter = runtime.Interpreter(model_content=path.read_bytes())
        interpreter.allocate_tensors()
        inputs_of = [(item["index"], item["dtype"]) for item in interpreter.get_input_details()]
        outputs_of = [item["index"] for item in interpreter.get_output_details()]

        def run(inputs: Any) -> list[Tensor]:
            for (index, dtype), tensor in zip(inputs_of, tensors_of(inputs), strict=True):
                interpreter.set_tensor(index, tensor.detach().cpu().numpy().astype(dtype))
            interpreter.invoke()
            return [torch.as_tensor(interpreter.get_tensor(index)) for index in outputs_of]

        return run


def _content(program: torch.export.ExportedProgram) -> bytes:
    if any(node.target is torch.ops.aten.conv_transpose3d.input for node in program.graph.nodes):
        raise NotImplementedError("the runtime has no transposed 3-D convolutions")
    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    module = cropped_outputs(volumes_as_images(program)).module()
    module.training = False  # the converter warns of models in training mode
    return importlib.import_module("litert_torch").convert(module, args, kwargs or None).model_content()


registry.register(LiteRT, summary="for LiteRT (formerly TensorFlow Lite), .tflite")
