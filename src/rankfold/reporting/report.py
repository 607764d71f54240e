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
from rankfold.reporting.record import BoundRow, EpochRow, LayerRow, MetricValue
from rankfold.storage import artifact_identity, companion_file


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Document):
    """The result of a compression: before and after, layer by layer, and the plan's origin. `build_report` fills it.

    Parameters
    ----------
    model_name : str
        The model's name; may be empty.
    coverage : str
        The inventory's coverage line; every report starts with it.
    example : str
        The example input in words; MACs and feature maps belong to it.
    before, after : Cost
        Of the whole dense and the whole compressed model.
    uncounted : tuple of str
        Operations whose MACs are not known. If there are any, the MACs of both models are lower bounds.
    layers : tuple of LayerRow
        In order of definition.
    others : tuple of OtherModule
        Modules with parameters that are no layers.
    disk_bytes : int or None
        Size of the saved artefact.
    latency : (float, float) or None
        Measured milliseconds of one forward pass, dense and compressed.
    metrics : tuple of MetricValue
        The first is the one that the report shows on top.
    bounds : tuple of BoundRow
        The budget, bound by bound.
    provenance : Provenance
        Of the plan.
    notes : tuple of str
        Notes and warnings, in the order in which they arose.
    history : tuple of EpochRow
        Fine-tuning, epoch by epoch.
    timings : mapping of str to float
        Wall-clock seconds by stage.
    created : str
        Date and time (UTC, ISO 8601).
    artifact : str or None
        Checksum of the artefact that the report describes, if it was written next to one.
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
        """Read a report from a JSON file, or from an artefact's folder that holds a ``report.json``.

        Raises
        ------
        CorruptArtifact
            If the file does not exist, cannot be read, or describes another artefact than the folder's.
        """
        path = Path(path)
        folder = os.path.isdir(path)
        file = companion_file(path, "report.json") if folder else path
        text = read_text(file, kind=cls.KIND, hint="Give an artefact's folder or its report.json.")
        report = cls.from_json(text, source=str(file))
        if folder and report.artifact not in (None, artifact_identity(path) or report.artifact):
            raise CorruptArtifact(
                f"{str(file)!r} describes an artefact that is no longer there. Run the command that wrote it again."
            )
        return report

    def texts(self, artifact: str) -> dict[str, str]:
        """Return ``report.html`` and ``report.json`` of the artefact with this checksum, by name."""
        report = replace(self, artifact=artifact)
        return {"report.html": report.to_html(), "report.json": report.to_json()}
