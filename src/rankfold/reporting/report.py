"""The report of a compression."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from rankfold._documents import read_text
from rankfold.errors import CorruptArtifact
from rankfold.records import Cost, OtherModule, Provenance
from rankfold.reporting.document import Document
from rankfold.reporting.record import BoundRow, EpochRow, LayerRow, MetricValue, RoundRow, WidthRow
from rankfold.storage import artifact_identity, companion_file


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Document):
    """The result of a compression: costs and metrics before and after, layer by layer, and the origin of the plan.

    Parameters
    ----------
    coverage : str
        The inventory's coverage line.
    before, after : Cost
        Of the dense and of the compressed model.
    uncounted : tuple of str
        Operations with unknown MACs. If there are any, the MACs of both models are lower bounds.
    model_name : str
        The model's name; may be empty.
    example : str
        A description of the example input, which MACs and feature maps refer to.
    layers : tuple of LayerRow
        In order of definition.
    others : tuple of OtherModule
        Modules with parameters that are not layers.
    disk_bytes : int or None
        Size of the saved artifact.
    latency : (float, float) or None
        Measured milliseconds per forward pass, dense and compressed.
    metrics : tuple of MetricValue
        The most important one first.
    bounds : tuple of BoundRow
        The budget, bound by bound.
    provenance : Provenance
        Of the plan.
    notes : tuple of str
        Notes and warnings, in order of occurrence.
    history : tuple of EpochRow
        Fine-tuning, epoch by epoch.
    rounds : tuple of RoundRow
        The rounds of a strategy that trains models.
    widths : tuple of WidthRow
        The layers that lost channels.
    timings : mapping of str to float
        Wall-clock seconds by stage.
    created : str
        Date and time (UTC, ISO 8601).
    artifact : str or None
        Checksum of the artifact that the report was written next to.
    """

    KIND: ClassVar[str] = "report"

    coverage: str
    before: Cost
    after: Cost
    uncounted: tuple[str, ...] = ()
    model_name: str = ""
    example: str = ""
    layers: tuple[LayerRow, ...] = ()
    others: tuple[OtherModule, ...] = ()
    disk_bytes: int | None = None
    latency: tuple[float, float] | None = None
    metrics: tuple[MetricValue, ...] = ()
    bounds: tuple[BoundRow, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    notes: tuple[str, ...] = ()
    history: tuple[EpochRow, ...] = ()
    rounds: tuple[RoundRow, ...] = ()
    widths: tuple[WidthRow, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    created: str = ""
    artifact: str | None = None

    @property
    def factored(self) -> tuple[LayerRow, ...]:
        """The layers that were factored."""
        return tuple(row for row in self.layers if not row.kept)

    def __repr__(self) -> str:
        sizes = f"{self.before.params:,} -> {self.after.params:,} parameters"
        return f"<Report: {len(self.factored)} of {len(self.layers)} layers factored, {sizes}>"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the report in a JSON file, or in the ``report.json`` of an artifact's folder.

        Raises
        ------
        CorruptArtifact
            If the file does not exist, cannot be read, or describes another artifact.
        """
        path = Path(path)
        folder = os.path.isdir(path)
        file = companion_file(path, "report.json") if folder else path
        text = read_text(file, kind=cls.KIND, hint="Pass an artifact's folder or its report.json.")
        report = cls.from_json(text, source=str(file))
        if folder and report.artifact not in (None, artifact_identity(path) or report.artifact):
            raise CorruptArtifact(
                f"{str(file)!r} describes an artifact that no longer exists. Run the command that wrote it again."
            )
        return report

    def texts(self, artifact: str) -> dict[str, str]:
        """Return ``report.html`` and ``report.json`` of the artifact with this checksum, by file name."""
        report = replace(self, artifact=artifact)
        return {"report.html": report.to_html(), "report.json": report.to_json()}
