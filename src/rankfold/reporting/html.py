"""The report as one HTML document that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import re

from rankfold.reporting import words
from rankfold.reporting.figures import history_figures, layer_figures
from rankfold.reporting.markup import Markup, el, join
from rankfold.reporting.page import page, section, table
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
from rankfold.reporting.tiles import minus, tiles


def to_html(record: ReportRecord) -> str:
    """Return the document."""
    name = record.model_name or "Compressed model"
    facts = (_metrics(record), _budget(record), _notes(record))
    return page(
        f"{name} · rankfold report",
        _header(record, name),
        tiles(record),
        el("div", _totals(record), el("div", facts) if any(facts) else None, class_="two"),
        section("Layer by layer", layer_figures(record)) if record.layers else None,
        _layers(record),
        _history(record),
        _provenance(record),
    )


def _header(record: ReportRecord, name: str) -> Markup:
    return el(
        "header",
        el("p", "rankfold report", class_="eyebrow"),
        el("h1", name),
        el("p", record.coverage, class_="coverage"),
        el("p", headline(record), class_="muted"),
    )


def _totals(record: ReportRecord) -> Markup:
    rows = [(r.name, r.before_text, r.after_text, r.ratio.replace("x", "×"), r.reduction) for r in totals(record)]
    grid = table(("", ">before", ">after", ">ratio", ">reduction"), rows)
    note = el(
        "p",
        "MACs and feature maps are those of one forward pass on the example input; fewer MACs are "
        "not by themselves less time. Overall memory is parameters plus feature-map elements. "
        "The ratio is before ÷ after.",
        class_="muted small",
    )
    return section("Before and after", grid, note)


def _metrics(record: ReportRecord) -> Markup | None:
    if not record.metrics:
        return None
    shown = metric_columns(record)
    rows: list[list[str]] = []
    for m in record.metrics:
        css = "worse" if m.worse else None
        change = el("span", minus(words.metric_change(m)), class_=css)
        rows.append([m.name, *(words.metric(m, get(m)) for _, get in shown), change])
    differing = [m.name for m in record.metrics if m.reload_differs]
    warning = None
    if differing:
        text = f"Measured again after saving and loading, {', '.join(differing)} changed."
        warning = el("p", text, class_="warning")
    heads = ["metric", *(f">{title}" for title, _ in shown), ">change"]
    return section("Metrics", table(heads, rows), warning)


def _budget(record: ReportRecord) -> Markup | None:
    if not record.bounds:
        return None
    css = {True: "pill good", False: "pill bad", None: "pill"}
    rows = [
        (
            bound_text(b).replace(" ", "\N{NO-BREAK SPACE}"),
            el("span", verdict(b), class_=css[b.met]),
            bound_result(b),
        )
        for b in record.bounds
    ]
    return section("Budget", table(("bound", "verdict", "result"), rows))


def _notes(record: ReportRecord) -> Markup | None:
    if not record.notes:
        return None
    return section("Notes", el("ul", (el("li", note) for note in record.notes), class_="notes"))


def _history(record: ReportRecord) -> Markup | None:
    rows = record.history
    if not rows:
        return None
    cells = [
        (
            str(e.epoch),
            words.number(e.loss),
            words.number(e.metric),
            words.rate(e.lr),
            words.NONE if e.seconds is None else words.seconds(e.seconds),
        )
        for e in rows
    ]
    grid = table((">epoch", ">loss", ">metric", ">learning rate", ">time"), cells, tall=len(rows) > 12)
    return section("Fine-tuning", el("div", history_figures(record), class_="pair"), grid)


def _layers(record: ReportRecord) -> Markup:
    measured = has_measured_errors(record)
    errors = ["predicted"] + (["measured"] if measured else [])
    heads = ["layer", "method", "ranks", *([">before", ">after", ">left"] * 2)]
    heads += [f">{name}" for name in errors]
    top = el(
        "tr",
        el("th", colspan="3"),
        el("th", "parameters", colspan="3", class_="group"),
        el("th", "MACs", colspan="3", class_="group"),
        el("th", "relative error", colspan=str(len(errors)), class_="group"),
    )
    rows = [_layer(row, measured) for row in record.layers]
    grid = table(heads, rows, tall=len(rows) > 30, top=top, css="layers")
    others = [el("li", other_text(group)) for group in other_groups(record.others)]
    rest = None
    if others:
        heading = el("h3", "Other modules with parameters")
        rest = join(heading, el("ul", others, class_="notes"))
    return section("Every layer", grid, rest)


def _layer(row: LayerRow, measured: bool) -> list[str]:
    name = join(el("code", _breakable(row.label)), el("span", row.layer, class_="sub words"))
    text = remark(row)
    note = el("span", text, class_="sub") if text else None
    if row.kept:
        cells = [name, el("span", words.NONE, class_="muted"), join(note)]
    else:
        cells = [name, el("b", row.method or ""), join(words.ranks(row.ranks), note)]
    for before, after in (
        (row.before.params, row.after.params),
        (row.before.macs, row.after.macs),
    ):
        if row.kept and before == after:
            cells += [words.count(before), el("span", "same", class_="muted"), ""]
        else:
            cells += [words.count(before), words.count(after), _left(before, after)]
    cells.append("" if row.kept else words.error(row.error))
    if measured:
        cells.append("" if row.kept else words.error(row.measured_error))
    return cells


def _breakable(name: str) -> Markup:
    """A long path may break after a dot."""
    return Markup(el("wbr").join(join(part) for part in re.split(r"(?<=\.)", name)))


def _left(before: float, after: float) -> Markup:
    """What is left, in per cent, over a bar of that length."""
    if before <= 0:
        return el("span", words.NONE, class_="muted")
    share = after / before
    width = f"--left:{100 * min(1.0, share):.1f}%"
    return el("span", words.percent(share), class_="left", style=width)


def _provenance(record: ReportRecord) -> Markup:
    pairs = [(el("dt", what), el("dd", value)) for what, value in provenance_rows(record)]
    return section("Where this comes from", el("dl", (join(*pair) for pair in pairs)))
