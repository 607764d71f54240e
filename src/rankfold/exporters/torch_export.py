"""``torch-export``: PyTorch's own format, for C++ and for other exporters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold._tensors import tensors_of
from rankfold.batches import call_model
from rankfold.errors import ModelError
from rankfold.exporters.contract import Exporter, Runner, registry
from rankfold.inventory import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchExport(Exporter):
    """A program of ``torch.export``; ``torch.export.load(path).module()`` runs it."""

    name = "torch-export"
    suffix = ".pt2"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the program.

        Raises
        ------
        ModelError
            If torch cannot store it.
        """
        with quiet(), path.open("wb") as file, _storing():
            torch.export.save(program, file)

    def open(self, path: Path) -> Runner:
        """Return the program as a function.

        Raises
        ------
        ModelError
            If torch cannot load what it stored.
        """
        with quiet(), path.open("rb") as file, _storing():
            module = torch.export.load(file).module()

        def run(inputs: Any) -> list[Tensor]:
            with torch.no_grad():
                return tensors_of(call_model(module, inputs))

        return run


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ModelError(
            "the model cannot be exported to torch-export, whose file could not be written and read back. torch raised "
            f"{type(error).__name__}: {error}\nUse the format 'onnx', or replace the operation or the name that it "
            "mentions."
        ) from error


registry.register(TorchExport, summary="PyTorch's own format, .pt2")
