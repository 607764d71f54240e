"""``executorch``: for ExecuTorch, on phones and embedded devices."""

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
from rankfold.exporters.rewrites import volumes_as_images
from rankfold.inventory import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuTorch(Exporter):
    """A program of ExecuTorch, whose products XNNPACK computes; memory is planned for the largest batch."""

    name = "executorch"
    suffix = ".pte"
    batch_sizes = "bounded"
    packages = ("executorch",)
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

    def open(self, path: Path) -> Runner:
        """Return the program as a function."""
        with quiet():
            runtime = importlib.import_module("executorch.runtime").Runtime.get()
        program = runtime.load_program(path.read_bytes())
        loaded = program, program.load_method("forward")  # the method lives in the memory of the program

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
