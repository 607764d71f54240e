"""The sections of a record: built once, rendered by `terminal`, `markdown` and `html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

from rankfold.reporting.markup import Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with a tone, or with a share (0..1) that HTML also renders as a bar."""

    text: str
    tone: Literal["", "good", "bad"] = ""
    share: float | None = None


Text = str | Cell


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, given by its head: at most one mark, and the title.

    The mark is ``>`` for numbers (right-aligned, not wrapped), a backtick for names (code), or ``+`` for a description
    of the previous column (a second line in HTML; omitted in a narrow terminal).
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
        """Whether the column contains numbers."""
        return self.mark == ">"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table, a list, charts, or a combination under one heading; an empty section is not shown."""

    title: str = ""
    heads: Sequence[str] = ()  # with the marks of `Column`
    rows: Sequence[Sequence[Text]] = ()
    footer: Sequence[str] = ()  # the last row, set apart
    lines: Sequence[Text] = ()  # a list
    notes: Sequence[Text] = ()  # in small print
    figures: Sequence[Markup] = ()  # HTML only
    narrow: bool = False  # fits half the width of a page

    @property
    def columns(self) -> list[Column]:
        """The columns of the table."""
        return [Column(head) for head in self.heads]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A key result at the top of an HTML page; the share (0..1) is rendered as a bar."""

    name: str
    value: str
    unit: str = ""
    details: Sequence[Text] = ()
    tone: Literal["", "good", "bad"] = ""
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything that is shown of a record."""

    title: str = ""
    kind: str = ""  # such as "rankfold report"
    lead: str = ""  # the most important sentence
    details: Sequence[str] = ()  # in small print
    sections: Sequence[Section] = ()
    tiles: Sequence[Tile] = ()  # HTML only

    @property
    def shown(self) -> list[Section]:
        """The sections that have content."""
        return [s for s in self.sections if s.rows or s.lines or s.notes or s.figures]


@singledispatch
def content(record: Any, *, brief: bool) -> Content:
    """Return the content of a record (a report, sweep, analysis, inventory or plan); each type registers a function.

    `brief` content is for a terminal: rounded numbers, few columns, no charts, and the results last.
    """
    raise TypeError(f"no content is registered for {type(record).__name__} ({brief=})")


def tips(section: Section) -> list[str]:
    """Return each row as lines of title and text: the tooltips of a chart."""
    lines = [zip(section.columns, row, strict=True) for row in section.rows]
    return ["\n".join(f"{c.title} {plain(cell)}".strip() for c, cell in row if plain(cell)) for row in lines]


def plain(text: Text) -> str:
    """Return the text of a cell."""
    return text.text if isinstance(text, Cell) else text
