"""The record of measured layer times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rankfold.records import Ranks
from rankfold.records.amounts import elapsed
from rankfold.reporting import words
from rankfold.reporting.document import Document
from rankfold.reporting.sections import Cell, Content, Section, content


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRow:
    """The time of one setting of layers that have the same geometry; None as the method is the dense layer.

    `ns` is the time of all calls of one layer in a forward pass, `ratio` that to the dense layer, and `spread` the
    relative standard error of the median. A `noisy` time is not shown.
    """

    layers: tuple[str, ...]
    layer: str  # its description, such as "Conv2d 16->32 3x3 s2 g1"
    method: str | None
    ranks: Ranks
    ns: int
    ratio: float
    spread: float
    noisy: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LatencyTable(Document):
    """Measured times of layers, dense and factored, on a target.

    Parameters
    ----------
    target : str
        Runtime and settings.
    facts : mapping of str to str
        Device and versions.
    whole_ns : int
        Time of the dense model.
    whole_spread : float
        Relative standard error of it.
    blocks : mapping of str to int
        Channels in which the runtime computes, by kind of layer.
    rows : tuple of TimeRow
        The layers, in order of definition.
    """

    KIND: ClassVar[str] = "latency table"

    target: str
    facts: Mapping[str, str]
    whole_ns: int
    whole_spread: float
    blocks: Mapping[str, int]
    rows: tuple[TimeRow, ...]

    def __repr__(self) -> str:
        return f"<LatencyTable: {self.headline()}>"

    def headline(self) -> str:
        """Return one line with the target and the time of the dense model."""
        return f"{self.target}: dense model {elapsed(self.whole_ns)} ± {words.percent(self.whole_spread)}"


@content.register
def _(table: LatencyTable, *, brief: bool) -> Content:  # noqa: ARG001 - the same everywhere
    rows = []
    for row in table.rows:
        first = [_named(row.layers), row.layer] if row.method is None else ["", ""]
        what = "dense" if row.method is None else f"{row.method} {words.ranks(row.ranks)}"
        if row.noisy:
            rows.append((*first, what, Cell("too noisy to tell", tone="bad"), words.NONE, words.percent(row.spread)))
            continue
        ratio = Cell(words.percent(row.ratio), tone="good" if row.ratio < 1 else "bad" if row.ratio > 1 else "")
        rows.append((*first, what, elapsed(row.ns), ratio, words.percent(row.spread)))
    blocks = ", ".join(f"{count} ({kind})" for kind, count in table.blocks.items())
    notes = [
        f"Times are medians of alternating runs. Channels are computed in blocks of {blocks}.",
        ", ".join(f"{name} {fact}" for name, fact in table.facts.items()),
    ]
    heads = ("`layer", "+shape", "setting", ">time", ">of dense", ">uncertainty")
    return Content(
        title="Layer times", kind="rankfold latency", lead=table.headline(),
        sections=[Section(heads=heads, rows=rows, notes=notes)],
    )  # fmt: skip


def _named(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
