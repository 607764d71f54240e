"""The report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rankfold._printable import printable
from rankfold.reporting import words
from rankfold.reporting.record import LayerRow, ReportRecord
from rankfold.reporting.summary import (
    bound_result,
    bound_text,
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


def text(value: str) -> str:
    """Return text that Markdown shows as it is, on one line, also inside a table."""
    line = " ".join(printable(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
    return re.sub(r"^[>#+-]", r"\\\g<0>", line)  # a quotation, heading or list


def code(value: str) -> str:
    """Return text as a code span, also inside a table; any backtick in it is kept."""
    value = " ".join(printable(value).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if value.startswith("`") or value.endswith("`") else ""
    return f"{fence}{pad}{value}{pad}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a column whose title starts with ``>`` is right-aligned."""
    titles = [c.removeprefix(">") for c in columns]
    rule = ["---:" if c.startswith(">") else "---" for c in columns]
    return [f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows)] + [""]


def to_markdown(record: ReportRecord) -> str:
    """Return the report as Markdown text."""
    lines = [f"# {text(record.model_name or 'Compressed model')}", ""]
    lines += [f"**{text(record.coverage)}**", "", text(headline(record)), ""]
    lines += ["## Before and after", ""]
    lines += table(
        ("", ">before", ">after", ">ratio", ">reduction"),
        [(r.name, r.before_text, r.after_text, r.ratio, r.reduction) for r in totals(record)],
    )
    lines += _metrics(record) + _budget(record) + _layers(record)
    groups = other_groups(record.others)
    if groups:
        lines += ["Other modules with parameters:", ""]
        lines += [f"- {text(other_text(group))}" for group in groups] + [""]
    if record.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in record.notes), ""]
    lines += _history(record)
    lines += ["## Provenance", ""]
    lines += table(("what", "value"), [(w, text(v)) for w, v in provenance_rows(record)])
    return "\n".join(lines).rstrip("\n") + "\n"


def _metrics(record: ReportRecord) -> list[str]:
    if not record.metrics:
        return []
    columns = metric_columns(record)
    rows = [
        [text(m.name), *(words.metric(m, get(m)) for _, get in columns), words.metric_change(m)] for m in record.metrics
    ]
    return [
        "## Metrics",
        "",
        *table(["metric", *(f">{title}" for title, _ in columns), ">change"], rows),
    ]


def _budget(record: ReportRecord) -> list[str]:
    if not record.bounds:
        return []
    rows = [(text(bound_text(b)), bound_result(b), verdict(b)) for b in record.bounds]
    return ["## Budget", "", *table(("bound", "result", "verdict"), rows)]


def _layers(record: ReportRecord) -> list[str]:
    measured = has_measured_errors(record)
    columns = ["layer", "", "method", "ranks", ">params", ">after", ">MACs", ">after", ">error"]
    columns += [">measured"] if measured else []
    rows = [_layer(row, measured) for row in record.layers]
    return ["## Layers", "", *table([*columns, "remark"], rows)]


def _layer(row: LayerRow, measured: bool) -> list[str]:
    cells = [code(row.label), text(row.layer)]
    cells += [text(row.method), words.ranks(row.ranks)] if row.method else ["–", ""]
    cells += [words.count(row.before.params), words.count(row.after.params)]
    cells += [words.count(row.before.macs), words.count(row.after.macs)]
    cells += ["" if row.kept else words.error(row.error)]
    if measured:
        cells += ["" if row.kept else words.error(row.measured_error)]
    return [*cells, text(remark(row))]


def _history(record: ReportRecord) -> list[str]:
    if not record.history:
        return []
    rows = [
        (
            str(e.epoch),
            words.number(e.loss),
            words.rate(e.lr),
            words.number(e.metric),
            words.NONE if e.seconds is None else words.seconds(e.seconds),
        )
        for e in record.history
    ]
    columns = (">epoch", ">loss", ">learning rate", ">metric", ">time")
    return ["## Fine-tuning", "", *table(columns, rows)]
