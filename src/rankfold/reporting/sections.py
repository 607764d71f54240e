"""What is shown of a record: sections, made once and drawn by `terminal`, `markdown` and `html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

from rankfold.reporting.markup import Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with a meaning: good or bad news, or a share (0..1) that HTML also draws as a bar."""

    text: str
    tone: Literal["", "good", "bad"] = ""
    share: float | None = None


Text = str | Cell


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, as its head describes it.

    The head is the title, after at most one mark: ``>`` for numbers (right-aligned, never folded), a backtick for names
    (code), ``+`` for a description of the column before (a second line in HTML, left out by a narrow terminal).
    """

    head: str

    @property
    def mark(self) -> str:
        """The mark, or an empty string."""
        return self.head[:1] if self.head[:1] in (">", "`", "+") else ""

    @property
    def title(self) -> str:
        """The title without its mark."""
        return self.head.removeprefix(self.mark)

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return self.mark == ">"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table, a list, charts, or several of these under one heading; without any of them it is not shown.

    Parameters
    ----------
    title : str
        The heading; may be empty.
    heads : sequence of str
        The columns' titles, marked as `Column` says.
    rows : sequence of sequence of str or Cell
        One text for each column.
    footer : sequence of str
        A last row, set apart.
    lines : sequence of str or Cell
        A list.
    notes : sequence of str or Cell
        Sentences in small print.
    figures : sequence of Markup
        Charts, for HTML alone.
    narrow : bool
        Whether it fits half a page's width, next to another one.
    """

    title: str = ""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[Text]] = ()
    footer: Sequence[str] = ()
    lines: Sequence[Text] = ()
    notes: Sequence[Text] = ()
    figures: Sequence[Markup] = ()
    narrow: bool = False

    @property
    def columns(self) -> list[Column]:
        """The columns of the table."""
        return [Column(head) for head in self.heads]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A result at a glance, on top of an HTML page: a value, its unit, details, and a share (0..1) drawn as a bar."""

    name: str
    value: str
    unit: str = ""
    details: Sequence[Text] = ()
    tone: Literal["", "good", "bad"] = ""
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that is shown of a record.

    Parameters
    ----------
    title : str
        The heading; may be empty.
    kind : str
        What it is, such as ``"rankfold report"``.
    lead : str
        The most important sentence.
    details : sequence of str
        More sentences, in small print.
    sections : sequence of Section
        In order; those without content are left out.
    tiles : sequence of Tile
        For HTML alone.
    """

    title: str = ""
    kind: str = ""
    lead: str = ""
    details: Sequence[str] = ()
    sections: Sequence[Section] = ()
    tiles: Sequence[Tile] = ()

    @property
    def shown(self) -> list[Section]:
        """The sections that have content."""
        return [s for s in self.sections if s.rows or s.lines or s.notes or s.figures]


@singledispatch
def content(record: Any, *, brief: bool) -> Content:
    """Return what is shown of a record; each kind of record registers its own function.

    Parameters
    ----------
    record : object
        A report, sweep, analysis, inventory or plan.
    brief : bool
        Whether it is for a terminal: rounded numbers, few columns, no charts, and the results last.
    """
    raise TypeError(f"nothing is registered that shows a {type(record).__name__} ({brief=})")


def tips(section: Section) -> list[str]:
    """Return each row as lines of title and text, for the marks of a chart."""
    lines = [zip(section.columns, row, strict=True) for row in section.rows]
    return ["\n".join(f"{c.title} {plain(cell)}".strip() for c, cell in row if plain(cell)) for row in lines]


def plain(text: Text) -> str:
    """Return the text of a cell."""
    return text.text if isinstance(text, Cell) else text
