"""The sweep: one record, shown in the terminal, as Markdown, JSON, CSV or one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankfold._documents import Limits, json_text, parse_document, read_text, write_by_suffix
from rankfold._printable import printable
from rankfold.errors import CorruptArtifact
from rankfold.records import Plan
from rankfold.records.display import Shown
from rankfold.reporting.codec import decode, encode
from rankfold.reporting.markdown import table, text
from rankfold.reporting.sweep.page import to_html
from rankfold.reporting.sweep.record import SweepPoint, SweepRecord
from rankfold.reporting.sweep.sheets import headline, heads, infeasible, rows
from rankfold.reporting.terminal import default_console, line, make_table

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "rankfold-sweep"
VERSION = 1
LIMITS = Limits(size=64 * 2**20, entries=2_000_000)
"""A sweep holds a plan for each of its points."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep(Shown, SweepRecord):
    """A family of plans for one model, one for each budget.

    The fields are those of `SweepRecord`; `rankfold.sweep` fills them.
    """

    def __repr__(self) -> str:
        planned = sum(point.plan is not None for point in self.points)
        return f"<Sweep: {planned} of {len(self.points)} budgets of {self.resource} planned>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; each plan is as `Plan.save` writes it."""
        data: dict[str, Any] = {"format": FORMAT, "version": VERSION, **encode(self)}
        best = {id(point) for point in self.front()}
        for point, entry in zip(self.points, data["points"], strict=True):
            entry["plan"] = None if point.plan is None else json.loads(point.plan.to_json())
            entry["front"] = id(point) in best
        return data

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; `from_json` reads it back without loss."""
        return json_text(self.to_dict(), indent=1) + "\n"

    def to_html(self) -> str:
        """Return one HTML page with the front as a picture: no network, no script, no font."""
        return to_html(self)

    def to_markdown(self) -> str:
        """Return the table as GitHub-flavoured Markdown."""
        lines = [f"# {text(self.model_name or 'Sweep')}", "", f"**{text(self.coverage)}**", "", text(headline(self))]
        lines += ["", *table(heads(self), [[text(row[0]), *row[1:]] for row in rows(self)])]
        lines += [f"- {text(reason)}" for reason in infeasible(self)]
        return "\n".join(lines).rstrip("\n") + "\n"

    def to_csv(self) -> str:
        """Return the points as comma-separated values, amounts in units and bytes."""
        best = {id(point) for point in self.front()}
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = ("params", "macs", "fm", "weight_bytes")
        writer.writerow(("budget", *names, "damage", "metric", "front", "folder", "reason"))
        for point in self.points:
            costs = [None if point.cost is None else getattr(point.cost, name) for name in names]
            front = int(id(point) in best)
            writer.writerow((point.budget, *costs, point.damage, point.metric, front, point.folder, point.reason))
        return printable(stream.getvalue())

    def print(self, console: Console | None = None) -> None:
        """Print the table; `console` is rich's, by default one on standard output."""
        out = console or default_console()
        if self.model_name:
            out.print(line(self.model_name, "bold"))
        out.print(line(self.coverage, "bold"))
        out.print(line(headline(self), "dim"))
        out.print(make_table("", heads(self), rows(self)))
        for reason in infeasible(self):
            out.print(line(reason, "yellow"))

    def save(self, path: str | Path) -> Path:
        """Write the sweep to a file, whole or not at all, in the form that the suffix names.

        Parameters
        ----------
        path : str or Path
            Ends in ``.html``, ``.json``, ``.md`` or ``.csv``.

        Raises
        ------
        ConfigError
            If the suffix is another one.
        RankfoldError
            If the file cannot be written.
        """
        writers = {".html": self.to_html, ".json": self.to_json, ".md": self.to_markdown, ".csv": self.to_csv}
        return write_by_suffix(path, writers, what="a sweep")

    @classmethod
    def from_json(cls, text: str, *, source: str = "sweep") -> Sweep:
        """Read a sweep from JSON text.

        Raises
        ------
        CorruptArtifact
            If the text is no JSON, no sweep, of a newer version, or has a malformed field.
        """
        data = parse_document(text, kind="sweep", format=FORMAT, version=VERSION, source=source, limits=LIMITS)
        entries = data.get("points")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise CorruptArtifact(f"{source}.points must be a list of objects. Was it edited or truncated?")
        points = tuple(_point(entry, f"{source}.points[{i}]") for i, entry in enumerate(entries))
        return replace(decode(cls, {**data, "points": []}, source), points=points)

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a sweep from a JSON file.

        Raises
        ------
        CorruptArtifact
            If there is no such file, or it cannot be read.
        """
        text = read_text(Path(path), kind="sweep", hint="Give a .json that Sweep.save wrote.", limits=LIMITS)
        return cls.from_json(text, source=str(path))


def _point(entry: Mapping[str, Any], where: str) -> SweepPoint:
    point: SweepPoint = decode(SweepPoint, {k: v for k, v in entry.items() if k != "plan"}, where)
    plan = entry.get("plan")
    found = None if plan is None else Plan.from_json(json.dumps(plan), source=f"{where}.plan")
    if found is not None and (point.cost is None or point.damage is None):
        raise CorruptArtifact(f"{where} has a plan without its cost or damage. Was it edited or truncated?")
    return replace(point, plan=found)
