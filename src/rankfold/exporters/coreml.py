"""``coreml``: for Core ML, on Apple's devices."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import shutil
import sys
from collections.abc import Iterator
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
class CoreML(Exporter):
    """An ML program in float32, which is a folder."""

    name = "coreml"
    suffix = ".mlpackage"
    folder = True
    batch_sizes = "bounded"
    packages = ("coremltools",)
    extra = "coreml"

    def unchecked(self) -> str | None:
        """Return why files cannot be run here; None on macOS."""
        return None if sys.platform == "darwin" else "Core ML only runs on macOS"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write an ML program.

        Raises
        ------
        ModelError
            If an operation has no counterpart in Core ML.
        """
        with quiet(), _silent("coremltools"), contextlib.redirect_stderr(io.StringIO()):  # bars of progress
            made = converted(program, "Core ML", _ml_program)
            shutil.copytree(made.package_path, path, dirs_exist_ok=True)

    def open(self, path: Path) -> Runner:
        """Return the model as a function, on macOS."""
        tools = importlib.import_module("coremltools")
        model = tools.models.MLModel(str(path), compute_units=tools.ComputeUnit.CPU_ONLY)
        description = model.get_spec().description
        names, outputs = ([item.name for item in items] for items in (description.input, description.output))

        def run(inputs: Any) -> list[Tensor]:
            arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of(inputs)]
            results = model.predict(dict(zip(names, arrays, strict=True)))
            return [torch.as_tensor(results[name]) for name in outputs]

        return run


def _ml_program(program: torch.export.ExportedProgram) -> Any:
    tools = importlib.import_module("coremltools")
    return tools.convert(
        program.run_decompositions({}), convert_to="mlprogram", skip_model_load=True,
        compute_precision=tools.precision.FLOAT32,
    )  # fmt: skip


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Run the block without the messages that a logger writes below errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


registry.register(CoreML, summary="for Core ML on Apple's devices, .mlpackage")
