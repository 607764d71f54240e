"""The contract of exporters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold._registry import Registry
from rankfold.batches import pieces
from rankfold.errors import ConfigError, MissingExtra
from rankfold.exporters.int8 import Int8
from rankfold.exporters.program import Capture

Runner = Callable[[Any], list[Tensor]]
"""Runs an exported file on one batch's inputs and returns its output tensors, in order."""


class Exporter(ABC):
    """A file format that other runtimes read.

    A subclass is a frozen dataclass, registered under its `name`.

    Attributes
    ----------
    name : str
        The name in the interface.
    suffix : str
        Suffix of its files, such as ``".onnx"``.
    weights_suffix : str or None
        Suffix of a second file next to the first, with the weights; None for formats of one file.
    batch_sizes : str
        Batch sizes of files with a dynamic batch: ``"any"``, ``"bounded"`` (at most the example's), or ``"fixed"`` (the
        example's only, as the format has no dynamic batch).
    folder : bool
        Whether a model is a folder.
    packages : tuple of str
        Modules that it imports, beyond those that rankfold requires.
    int8_packages : tuple of str
        Modules beyond `packages` that quantize, which `extra` also provides.
    extra : str
        rankfold's optional dependencies that provide them.
    """

    __slots__ = ()

    name: str
    suffix: str
    weights_suffix: str | None = None
    batch_sizes: Literal["any", "bounded", "fixed"] = "any"
    folder: bool = False
    packages: tuple[str, ...] = ()
    int8_packages: tuple[str, ...] = ()
    extra: str = ""

    def check(self) -> None:
        """Raise `MissingExtra` if a package is not installed."""
        for package in self.packages:
            if find_spec(package) is None:
                raise MissingExtra(f"export to {self.name!r}", self.extra, package)

    def weights_file(self, path: Path) -> Path | None:
        """Return the second file of an exported model; None if the format has one file."""
        return None if self.weights_suffix is None else path.with_suffix(self.weights_suffix)

    def unchecked(self) -> str | None:
        """Return why files cannot be run on this machine; None if they can."""
        return None

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write a captured model to a file."""

    def saturates(self) -> bool:
        """Return whether sums of int8 products may saturate in the format's runtime on this machine."""
        return False

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        batches: Iterable[Any],
        capture: Capture,
        *,
        reduce_range: bool,
    ) -> Int8:
        """Replace a written file by its int8 version, calibrated on batches of inputs.

        Parameters
        ----------
        program : ExportedProgram
            What was written.
        path : Path
            The file.
        batches : iterable
            Inputs of the sizes that the program accepts.
        capture : callable
            Captures a changed graph with the inputs and dynamic dimensions of the program.
        reduce_range : bool
            Whether weights have 7 bits.

        Raises
        ------
        ConfigError
            If the format has no int8 version.
        """
        raise ConfigError(f"the format {self.name!r} has no int8 version here. Use 'onnx' or 'executorch'.")

    @abstractmethod
    def open(self, path: Path) -> Runner:
        """Return a function that runs a written file in the format's runtime, on the CPU."""


class Exported(nn.Module):
    """An exported file as a module, so that metrics can measure it; several outputs are a tuple.

    Parameters
    ----------
    runner : callable
        Runs the file.
    largest : int or None
        Samples of the largest batch that it runs on; larger batches are cut.
    """

    def __init__(self, runner: Runner, largest: int | None = None) -> None:
        super().__init__()
        self._runner, self._largest = runner, largest

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file on one batch."""
        inputs = kwargs or args
        parts = [inputs] if self._largest is None else pieces(inputs, self._largest)
        by_part = [self._runner(part) for part in parts]
        outputs = by_part[0] if len(by_part) == 1 else [torch.cat(values) for values in zip(*by_part, strict=True)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


registry: Registry[Exporter] = Registry("export format")
"""All exporters by name."""

get = registry.get
"""Return an exporter by name; see `Registry.get`."""


def of_path(path: Path) -> Exporter:
    """Return the exporter whose suffix a path has.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for entry in registry:
        if path.suffix.lower() == entry.plugin.suffix:
            return entry.plugin()
    known = ", ".join(f"{entry.plugin.suffix} ({entry.plugin.name})" for entry in registry)
    raise ConfigError(
        f"the file {str(path)!r} has the suffix {path.suffix!r}, which belongs to no export format. "
        f"Use one of {known}, or name the format with {spelled('to', 'onnx')}."
    )
