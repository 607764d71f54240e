"""The report: one record, shown in the terminal, as Markdown, JSON or one HTML file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankfold._documents import json_text, parse_document, read_text, write_by_suffix
from rankfold.errors import CorruptArtifact
from rankfold.records.display import Shown
from rankfold.reporting.codec import decode, encode
from rankfold.reporting.html import to_html
from rankfold.reporting.markdown import to_markdown
from rankfold.reporting.record import ReportRecord
from rankfold.reporting.terminal import print_report
from rankfold.storage import artifact_identity, attach, beside_file

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "rankfold-report"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Shown, ReportRecord):
    """What a compression did: before and after, layer by layer, and where it comes from.

    The fields are those of `ReportRecord`; `build_report` fills them.
    """

    def __repr__(self) -> str:
        sizes = f"{self.before.params:,} -> {self.after.params:,} parameters"
        return f"<Report: {len(self.factored)} of {len(self.layers)} layers factored, {sizes}>"

    def to_html(self) -> str:
        """Return one HTML document that needs nothing else: no network, no script, no font."""
        return to_html(self)

    def to_markdown(self) -> str:
        """Return the report as GitHub-flavoured Markdown."""
        return to_markdown(self)

    def to_json(self) -> str:
        """Return the report as JSON text; `from_json` reads it back without loss."""
        data = {"format": FORMAT, "version": VERSION, **encode(self)}
        return json_text(data, indent=1) + "\n"

    def print(self, console: Console | None = None) -> None:
        """Print the report; `console` is rich's, by default one on standard output."""
        print_report(self, console)

    def save(self, path: str | Path) -> Path:
        """Write the report to a file, whole or not at all, in the form that the suffix names.

        Parameters
        ----------
        path : str or Path
            Ends in ``.html``, ``.md`` or ``.json``.

        Raises
        ------
        ConfigError
            If the suffix is another one.
        RankfoldError
            If the file cannot be written.
        """
        writers = {".html": self.to_html, ".md": self.to_markdown, ".json": self.to_json}
        return write_by_suffix(path, writers, what="a report")

    @classmethod
    def from_json(cls, text: str, *, source: str = "report") -> Report:
        """Read a report from JSON text.

        Raises
        ------
        CorruptArtifact
            If the text is no JSON, no report, of a newer version, or has a malformed field.
        """
        data = parse_document(text, kind="report", format=FORMAT, version=VERSION, source=source)
        return decode(cls, data, source)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report from a JSON file, or from an artefact folder that holds a ``report.json``.

        Raises
        ------
        CorruptArtifact
            If there is no such file, it cannot be read, or it describes another artefact than the folder's.
        """
        path = Path(path)
        folder = os.path.isdir(path)
        file = beside_file(path, "report.json") if folder else path
        hint = "Give an artefact's folder or its report.json."
        text = read_text(file, kind="report", hint=hint)
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

    def attach(self, folder: str | Path, artifact: str) -> Report:
        """Write ``report.html`` and ``report.json`` next to the artefact with this checksum, and return the report.

        Raises
        ------
        RankfoldError
            If another artefact has taken its place, or the folder cannot be written to.
        """
        attach(Path(folder), artifact, self.texts(artifact))
        return replace(self, artifact=artifact)
