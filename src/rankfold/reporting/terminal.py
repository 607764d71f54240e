"""The report in the terminal; every line fits 100 columns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rankfold._printable import printable
from rankfold.reporting import words
from rankfold.reporting.record import LayerRow, ReportRecord
from rankfold.reporting.summary import (
    bound_result,
    bound_text,
    explanations,
    has_measured_errors,
    headline,
    metric_columns,
    other_groups,
    other_text,
    provenance_rows,
    remark,
    totals,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


DEFAULT = 100
WIDE = 96
"""Below so many columns the layers' descriptions are left out: the numbers need the room."""


def print_report(record: ReportRecord, console: Console | None = None) -> None:
    """Print a report; the totals come last, where the eye is when the command ends."""
    out = console or default_console()

    def say(text: str, style: str = "") -> None:
        out.print(line(text, style), soft_wrap=False)

    say(record.model_name or "Compressed model", "bold")
    say(record.coverage, "bold")
    say(headline(record), "dim")
    out.print(_layers(record, words_too=out.width >= WIDE))
    for explanation in explanations(row.reason for row in record.layers):
        say(explanation, "dim")
    for group in other_groups(record.others):
        say(f"other: {other_text(group)}", "dim")
    if record.history:
        out.print(_history(record))
    before_after = [(r.name, r.before_text, r.after_text, r.ratio, r.reduction) for r in totals(record)]
    heads = ("", ">before", ">after", ">ratio", ">reduction")
    out.print(make_table("Before and after", heads, before_after))
    if record.metrics:
        out.print(_metrics(record))
    for bound in record.bounds:
        style = {True: "green", False: "bold red", None: "yellow"}[bound.met]
        say(f"budget {bound_text(bound)}: {verdict(bound)}, {bound_result(bound)}", style)
    for note in record.notes:
        say(f"note: {note}", "yellow")
    say("; ".join(f"{what}: {value}" for what, value in provenance_rows(record)), "dim")


def line(text: str, style: str = "") -> Text:
    """Return text as rich shows it: no markup (a layer may be called "[red]") and no control character."""
    from rich.text import Text

    return Text(printable(text), style=style)


def default_console() -> Console:
    """Return rich's console on standard output, `DEFAULT` columns wide where that is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = DEFAULT
    return console


def make_table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    footer: Sequence[str] | None = None,
) -> Table:
    """Return a table of plain text; a head that starts with ``>`` is of numbers: never folded."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=line(title, "bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_footer=footer is not None,
    )
    for i, head in enumerate(heads):
        number = head.startswith(">")
        table.add_column(
            line(head.removeprefix(">")),
            footer=line(footer[i]) if footer is not None else "",
            justify="right" if number else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    for row in rows:
        table.add_row(*(line(cell) for cell in row))
    return table


def _layers(record: ReportRecord, *, words_too: bool) -> Table:
    measured = has_measured_errors(record)
    heads = ["layer", "", "method, ranks", ">params", ">MACs", ">error"]
    heads += [">measured"] if measured else []
    rows = [_layer(row, measured) for row in record.layers]
    if not words_too:
        heads, rows = without_words(heads), [without_words(row) for row in rows]
    return make_table("Layers", heads, rows)


def without_words(cells: Sequence[str]) -> list[str]:
    """Return a row without its second cell, the layer in words."""
    return [cells[0], *cells[2:]]


def _layer(row: LayerRow, measured: bool) -> list[str]:
    what = [] if row.kept else [f"{row.method} {words.ranks(row.ranks)}"]
    text = "; ".join(part for part in (*what, remark(row, brief=True)) if part)
    cells = [row.label, short(row.layer), text]
    cells += [
        _change(row.before.params, row.after.params),
        _change(row.before.macs, row.after.macs),
    ]
    cells.append("" if row.kept else words.error(row.error))
    if measured:
        cells.append("" if row.kept else words.error(row.measured_error))
    return cells


def short(layer: str) -> str:
    """Return a layer in words without what goes without saying: stride 1, one group."""
    return re.sub(r" s1(?= |$)", "", re.sub(r" g1$", "", layer))


def _change(before: int, after: int) -> str:
    if before == after:
        return words.compact(before)
    return f"{words.compact(before)}→{words.compact(after)}"


def _metrics(record: ReportRecord) -> Table:
    shown = metric_columns(record)
    heads = ["metric", *(f">{title}" for title, _ in shown), ">change"]
    rows = [[m.name, *(words.metric(m, get(m)) for _, get in shown), words.metric_change(m)] for m in record.metrics]
    return make_table("Metrics", heads, rows)


def _history(record: ReportRecord) -> Table:
    epochs, most = record.history, 12
    step = -(-len(epochs) // most)
    shown = [e for e in epochs if (epochs[-1].epoch - e.epoch) % step == 0 or e is epochs[0]]
    rows = [
        (
            str(e.epoch),
            words.number(e.loss),
            words.number(e.metric),
            words.rate(e.lr),
            words.NONE if e.seconds is None else words.seconds(e.seconds),
        )
        for e in shown
    ]
    heads = (">epoch", ">loss", ">metric", ">learning rate", ">time")
    title = "Fine-tuning"
    if len(shown) < len(epochs):
        title += f" ({len(shown)} of {len(epochs)} epochs)"
    return make_table(title, heads, rows)
