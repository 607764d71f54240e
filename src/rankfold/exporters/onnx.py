"""``onnx``: for ONNX Runtime and most other runtimes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankfold._tensors import tensors_of
from rankfold.errors import ModelError, RankfoldError
from rankfold.exporters.contract import Exporter, Runner, registry
from rankfold.exporters.int8 import Int8, quantize, saturates
from rankfold.exporters.program import Capture
from rankfold.exporters.slim import save_slim
from rankfold.inventory import quiet

LARGEST = 2 * 10**9
"""Bytes of weights; a larger model does not fit in one file of this format (a protocol buffer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ONNX(Exporter):
    """A single file with graph and weights, which ONNX Runtime runs for the comparison."""

    name = "onnx"
    suffix = ".onnx"
    packages = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
    extra = "onnx"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the graph in ONNX's operators.

        Raises
        ------
        ModelError
            If an operation has no counterpart in ONNX, or the weights exceed `LARGEST`.
        """
        weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
        if weights > LARGEST:
            raise ModelError(
                f"the model has {weights:,} bytes of weights; an ONNX file holds at most {LARGEST:,}. Compress it "
                "further, or use the format 'torch-export'."
            )
        with quiet():
            try:
                converted = torch.onnx.export(program, dynamo=True, verbose=False)
                assert converted is not None
                save_slim(converted.model, path, names=True)
            except Exception as error:
                first = _first(error)
                raise ModelError(
                    f"the model cannot be exported to ONNX. torch.onnx raised {type(first).__name__}: {first}. "
                    "Use the format 'torch-export', or replace the operation that it names."
                ) from error

    def saturates(self) -> bool:
        """Return whether ONNX Runtime adds products in 16 bits on this machine."""
        return saturates()

    def quantize(
        self, program: torch.export.ExportedProgram, path: Path, batches: Iterable[Any], capture: Capture, *,
        reduce_range: bool,
    ) -> Int8:  # fmt: skip
        """Replace a written file by its int8 version, calibrated on batches of inputs."""
        names = [item.name for item in _session(path).get_inputs()]
        target = path.with_name(f"{path.name}.int8")
        try:
            done = quantize(path, target, (_feed(names, batch) for batch in batches), reduce_range=reduce_range)
            target.replace(path)
        finally:
            target.unlink(missing_ok=True)
        return done

    def open(self, path: Path) -> Runner:
        """Return a session of ONNX Runtime as a function."""
        session = _session(path)
        names = [item.name for item in session.get_inputs()]
        return lambda inputs: [torch.from_numpy(array) for array in session.run(None, _feed(names, inputs))]


def _first(error: BaseException) -> BaseException:
    """Return the error that led to another: torch.onnx adds pages of general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _session(path: Path) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RankfoldError(
            f"ONNX Runtime cannot load the exported model. It raised {type(error).__name__}: {error}\n"
            "Use a newer onnxruntime, or the format 'torch-export'."
        ) from error


def _feed(names: Sequence[str], inputs: Any) -> dict[str, Any]:
    """Return the arrays of a batch by the file's names."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of(inputs)]
    return dict(zip(names, arrays, strict=True))


registry.register(ONNX, summary="for ONNX Runtime and most other runtimes, .onnx")
