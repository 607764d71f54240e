"""Sections in the terminal, rendered by rich."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rankfold._printable import printable
from rankfold.records.display import Shown, show
from rankfold.reporting.sections import Cell, Content, Section, Text, content, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as RichText

DEFAULT = 100
WIDE = 96
"""A terminal with fewer columns omits descriptions to make room for the numbers."""
STYLES = {"": "", "good": "green", "bad": "bold red"}


def print_record(record: Any, console: Console | None = None) -> None:
    """Print a record to a rich console; None is standard output."""
    draw(content(record, brief=True), console)


show.register(Shown, print_record)


def draw(shown: Content, console: Console | None = None) -> None:
    """Print content to a rich console; None is standard output."""
    out = console or default_console()
    for text, style in [(shown.title, "bold"), (shown.lead, "bold"), *((detail, "dim") for detail in shown.details)]:
        if text:
            out.print(_line(text, style))
    for section in shown.shown:
        if section.title:
            out.print(_line(section.title, "bold"))
        if section.rows:
            out.print(_table(section, wide=out.width >= WIDE))
        for text in section.lines:
            out.print(_line("- ").append_text(_line(text)))
        for text in section.notes:
            out.print(_line(text, "dim"))


def default_console() -> Console:
    """Return a rich console on standard output, `DEFAULT` columns wide if that is not a terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = DEFAULT
    return console


def _line(text: Text, style: str = "") -> RichText:
    """Return literal text for rich: no markup (a layer may be named "[red]") and no control characters."""
    from rich.text import Text as RichText

    tone = text.tone if isinstance(text, Cell) else ""
    return RichText(printable(plain(text)), style=STYLES[tone] or style)


def _table(section: Section, *, wide: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_footer=bool(section.footer))
    shown = [i for i, column in enumerate(section.columns) if wide or column.mark != "+"]
    for i in shown:
        column = section.columns[i]
        table.add_column(
            _line(column.title),
            footer=_line(section.footer[i]) if section.footer else "",
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="ellipsis" if column.number else "fold",
        )
    for row in section.rows:
        table.add_row(*(_line(row[i]) for i in shown))
    return table
