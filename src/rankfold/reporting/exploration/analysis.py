"""The analysis: one record, shown in the terminal, as JSON or as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankfold._documents import json_text, write_by_suffix
from rankfold.cost.exploration import Extent, Space, scores
from rankfold.records.display import Shown
from rankfold.reporting.codec import encode
from rankfold.reporting.exploration.page import to_html
from rankfold.reporting.exploration.record import AnalysisRecord
from rankfold.reporting.exploration.sheets import sheets
from rankfold.reporting.terminal import default_console, line, make_table

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "rankfold-analysis"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Analysis(Shown, AnalysisRecord):
    """The exploration spaces of a network's layers, as Kokhazadeh et al. (2025), section 4, look at them.

    The fields are those of `AnalysisRecord`; `rankfold.analyze` fills them.
    """

    def __repr__(self) -> str:
        return f"<Analysis: {len(self.layers)} layers>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, with reductions, coverage, scores and averages."""
        data: dict[str, Any] = {"format": FORMAT, "version": VERSION, **encode(self)}
        for layer, entry in zip(self.layers, data["layers"], strict=True):
            for space, row in zip(layer.spaces, entry["spaces"], strict=True):
                _complete(space, row)
        data["averages"] = encode(self.averages)
        return data

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json_text(self.to_dict(), indent=1) + "\n"

    def to_html(self) -> str:
        """Return one HTML page with all tables and plots that needs nothing else: no network, no script, no font."""
        return to_html(self)

    def print(self, console: Console | None = None) -> None:
        """Print the tables; `console` is rich's, by default one on standard output."""
        out = console or default_console()
        if self.title:
            out.print(line(self.title, "bold"))
        for sheet in sheets(self, brief=True):
            out.print(make_table(sheet.title, sheet.heads, sheet.rows))
            if sheet.note:
                out.print(line(sheet.note, "dim"))

    def save(self, path: str | Path) -> Path:
        """Write the analysis to a file ending in ``.html`` or ``.json``, whole or not at all.

        Raises
        ------
        ConfigError
            If the suffix is another one.
        RankfoldError
            If the file cannot be written.
        """
        writers = {".html": self.to_html, ".json": self.to_json}
        return write_by_suffix(path, writers, what="an analysis")


def _complete(space: Space, row: dict[str, Any]) -> None:
    """Add what the record computes."""
    for name in ("params", "macs", "memory"):
        extent: Extent | None = getattr(space, name)
        if extent is not None:
            row[name] |= {"best": extent.best, "worst": extent.worst, "coverage": extent.coverage}
    row["scores"] = scores(space)
