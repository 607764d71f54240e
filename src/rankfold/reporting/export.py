"""The record of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rankfold.exporters.int8 import Int8
from rankfold.records.amounts import size
from rankfold.reporting import words
from rankfold.reporting.document import Document
from rankfold.reporting.record import MetricValue
from rankfold.reporting.sections import Content, Section, content


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Export(Document):
    """An exported file, and how its outputs compare with the model's.

    Parameters
    ----------
    path : str
        The file.
    file_format : str
        The export format.
    bytes : int
        Size of the file.
    weight_bytes : int
        Size of the model's parameters and buffers.
    inputs : str
        Shapes and types of the inputs that the model was exported with.
    ram : int or None
        The planner's estimate of peak activation memory for these inputs (the resource ``ram``), in bytes; one byte per
        activation in int8. None if the memory depends on the data.
    dynamic_batch : bool
        Whether the file runs on batches of several sizes.
    largest_batch : int or None
        Samples of the largest batch that the file runs on; None for any number.
    samples : int
        Inputs on which the file's outputs were compared with the model's; 0 if it cannot run on this machine.
    difference : float or None
        Relative difference of the outputs, ``||file - model|| / ||model||``, of the batch where it is largest. None if
        the file cannot run on this machine.
    unchecked : str or None
        Why the file cannot run on this machine.
    versions : mapping of str to str
        Versions of the packages that wrote and ran the file.
    metric : MetricValue or None
        The metric of the model ("dense") and of the file ("reloaded").
    int8 : Int8 or None
        What the file computes in int8; None if it has the model's data type.
    float_bytes : int or None
        Size of the file before quantization.
    """

    KIND: ClassVar[str] = "export"

    path: str
    file_format: str
    bytes: int
    weight_bytes: int
    inputs: str
    dynamic_batch: bool
    largest_batch: int | None = None
    samples: int = 0
    difference: float | None = None
    unchecked: str | None = None
    versions: Mapping[str, str]
    metric: MetricValue | None = None
    ram: int | None = None
    int8: Int8 | None = None
    float_bytes: int | None = None

    def __repr__(self) -> str:
        return f"<Export: {self.headline()}>"

    def headline(self) -> str:
        """Return one line with the file, its size and the difference of its outputs."""
        return f"{self.path}: {self.file_format}, {size(self.bytes)}, relative difference {self.compared}"

    @property
    def batch_size(self) -> str:
        """The batch sizes that the file runs on."""
        if not self.dynamic_batch:
            return "fixed"
        return "any" if self.largest_batch is None else f"at most {words.count(self.largest_batch)}"

    @property
    def compared(self) -> str:
        """The difference, and the number of samples; or why there is none."""
        if self.difference is None:
            return f"not checked: {self.unchecked}"
        return f"{self.difference:.1e} on {words.count(self.samples)} sample{'s' * (self.samples != 1)}"


@content.register
def _(export: Export, *, brief: bool) -> Content:  # noqa: ARG001 - the same everywhere
    facts = {
        "format": export.file_format,
        "file": f"{size(export.bytes)} (weights of the model: {size(export.weight_bytes)})",
        "inputs": export.inputs,
        "peak RAM for these inputs (estimate)": "depends on the data" if export.ram is None else size(export.ram),
        "batch size": export.batch_size,
        "relative difference of the outputs": export.compared,
        "versions": ", ".join(f"{name} {version}" for name, version in export.versions.items()),
    }
    if (metric := export.metric) is not None:
        change = f"{words.metric(metric, metric.dense)} → {words.metric(metric, metric.final)}"
        facts[metric.name] = f"{change} ({words.metric_change(metric)})"
    if export.int8 is not None and export.float_bytes is not None:
        facts["file before quantization"] = size(export.float_bytes)
        facts["convolutions and products in int8"] = words.count(export.int8.products)
        facts["left in float"] = ", ".join(export.int8.kept) or "none"
        facts["bits of the weights"] = "7" if export.int8.reduce_range else "8"
    lines = [f"{name}: {value}" for name, value in facts.items()]
    return Content(title=export.path, kind="rankfold export", sections=[Section(lines=lines)])
