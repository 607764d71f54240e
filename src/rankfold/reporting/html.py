"""The report as one HTML document that needs nothing else: no network, no script, no font."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from rankfold.reporting import words
from rankfold.reporting.figures import history_figures, layer_figures
from rankfold.reporting.markup import Markup, el, join
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
    style = (files("rankfold.reporting") / "style.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{name} · rankfold report"),
        el("style", Markup(style)),
    )
    facts = (_metrics(record), _budget(record), _notes(record))
    body = el(
        "main",
        _header(record, name),
        tiles(record),
        el("div", _totals(record), el("div", facts) if any(facts) else None, class_="two"),
        _section("Layer by layer", layer_figures(record)) if record.layers else None,
        _layers(record),
        _history(record),
        _provenance(record),
    )
    document = el("html", head, el("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


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
    table = _table(("", ">before", ">after", ">ratio", ">reduction"), rows)
    note = el(
        "p",
        "MACs and feature maps are those of one forward pass on the example input; fewer MACs are "
        "not by themselves less time. Overall memory is parameters plus feature-map elements. "
        "The ratio is before ÷ after.",
        class_="muted small",
    )
    return _section("Before and after", table, note)


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
    return _section("Metrics", _table(heads, rows), warning)


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
    return _section("Budget", _table(("bound", "verdict", "result"), rows))


def _notes(record: ReportRecord) -> Markup | None:
    if not record.notes:
        return None
    return _section("Notes", el("ul", (el("li", note) for note in record.notes), class_="notes"))


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
    table = _table((">epoch", ">loss", ">metric", ">learning rate", ">time"), cells, tall=len(rows) > 12)
    return _section("Fine-tuning", el("div", history_figures(record), class_="pair"), table)


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
    table = _table(heads, rows, tall=len(rows) > 30, top=top, css="layers")
    others = [el("li", other_text(group)) for group in other_groups(record.others)]
    rest = None
    if others:
        heading = el("h3", "Other modules with parameters")
        rest = join(heading, el("ul", others, class_="notes"))
    return _section("Every layer", table, rest)


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
    return Markup(el("wbr").join(join(part) for part in name.replace(".", ".\0").split("\0")))


def _left(before: float, after: float) -> Markup:
    """What is left, in per cent, over a bar of that length."""
    if before <= 0:
        return el("span", words.NONE, class_="muted")
    share = after / before
    width = f"--left:{100 * min(1.0, share):.1f}%"
    return el("span", words.percent(share), class_="left", style=width)


def _provenance(record: ReportRecord) -> Markup:
    pairs = [(el("dt", what), el("dd", value)) for what, value in provenance_rows(record)]
    return _section("Where this comes from", el("dl", (join(*pair) for pair in pairs)))


def _section(title: str, *children: Markup | Iterable[Markup | None] | None) -> Markup:
    return el("section", el("h2", title), *children)


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    tall: bool = False,
    top: Markup | None = None,
    css: str = "",
) -> Markup:
    """A title that starts with ``>`` is of numbers; a tall table scrolls under its head."""
    align = ["num" if head.startswith(">") else None for head in heads]
    titles = [el("th", head.removeprefix(">"), class_=a, scope="col") for head, a in zip(heads, align, strict=True)]
    body: list[Markup] = []
    for row in rows:
        first = el("th", row[0], class_=align[0], scope="row")
        rest = [el("td", c, class_=a) for c, a in zip(row[1:], align[1:], strict=True)]
        body.append(el("tr", first, rest))
    table = el("table", el("thead", top, el("tr", titles)), el("tbody", body), class_=css or None)
    return el("div", table, class_="scroll tall" if tall else "scroll", tabindex="0")
