"""``executorch``: for ExecuTorch, on phones and embedded devices."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold._tensors import tensors_of
from rankfold.errors import ModelError, RankfoldError
from rankfold.exporters.contract import Exporter, Runner, registry
from rankfold.exporters.int8 import Int8
from rankfold.exporters.program import Capture, converted
from rankfold.exporters.pt2e import described, is_product, quantized
from rankfold.exporters.rewrites import volumes_as_images
from rankfold.inventory import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuTorch(Exporter):
    """A program of ExecuTorch, whose products XNNPACK computes; memory is planned for the largest batch."""

    name = "executorch"
    suffix = ".pte"
    batch_sizes = "bounded"
    packages = ("executorch",)
    int8_packages = ("torchao",)
    extra = "executorch"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the program; 3-D convolutions, which ExecuTorch lacks, are written as 2-D ones.

        Raises
        ------
        ModelError
            If an operation has no counterpart in ExecuTorch.
        """
        with quiet():
            path.write_bytes(converted(program, "ExecuTorch", _content))

    def quantize(
        self, program: torch.export.ExportedProgram, path: Path, batches: Iterable[Any], capture: Capture, *,
        reduce_range: bool,
    ) -> Int8:  # fmt: skip
        """Replace a written file by its int8 version; XNNPACK's sums have 32 bits and do not saturate.

        Raises
        ------
        ModelError
            If the model has 3-D convolutions: the runtime cannot load their int8 form.
        """
        for node in program.graph.nodes:
            if is_product(node) and "3d" in described(node).partition(" ")[0]:
                raise ModelError(
                    f"{described(node)} is a 3-D convolution, which ExecuTorch does not compute in int8. Export the "
                    "model in float, or use the format 'onnx'."
                )
        xnnpack = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        most = 63 if reduce_range else 127
        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, weight_qmin=-most, weight_qmax=most)
        quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
        done, int8 = quantized(program, batches, quantizer, capture, narrow=reduce_range)
        self.write(done, path)
        return int8

    def open(self, path: Path) -> Runner:
        """Return the program as a function."""
        with quiet():
            runtime = importlib.import_module("executorch.runtime").Runtime.get()
        try:
            program = runtime.load_program(path.read_bytes())
            loaded = program, program.load_method("forward")  # the method lives in the memory of the program
        except RuntimeError as error:
            raise RankfoldError(
                f"ExecuTorch cannot load the exported model. It raised {type(error).__name__}: {error}\n"
                "Use the format 'onnx'."
            ) from error

        def run(inputs: Any) -> list[Tensor]:
            outputs = loaded[1].execute([tensor.detach().cpu().contiguous() for tensor in tensors_of(inputs)])
            return [output.clone() for output in outputs]  # the next run overwrites them

        return run


def _content(program: torch.export.ExportedProgram) -> bytes:
    if any(node.target is torch.ops.aten.pad.default and "circular" in node.args for node in program.graph.nodes):
        raise NotImplementedError("the runtime has no circular padding")
    exir = importlib.import_module("executorch.exir")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    edge = exir.to_edge_transform_and_lower(volumes_as_images(program), partitioner=[xnnpack.XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


registry.register(ExecuTorch, summary="for ExecuTorch, on phones and embedded devices, .pte")
