"""The report as one HTML document that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from rankfold.reporting import words
from rankfold.reporting.charts import Series, columns, line
from rankfold.reporting.markup import Markup, el, join
from rankfold.reporting.record import LayerRow, MetricValue, ReportRecord
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
        _tiles(record),
        el("div", _totals(record), el("div", facts) if any(facts) else None, class_="two"),
        _charts(record),
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


def _tiles(record: ReportRecord) -> Markup:
    before, after = record.before, record.after
    tiles = [
        _cost_tile("parameters", before.params, after.params, words.compact, "fewer", "more"),
        _cost_tile("MACs", before.macs, after.macs, words.compact, "fewer", "more"),
        _cost_tile("weights", before.weight_bytes, after.weight_bytes, words.size, "smaller", "larger"),
    ]
    if record.latency is not None:
        dense, compressed = record.latency
        tiles.append(_cost_tile("latency", dense, compressed, words.milliseconds, "faster", "slower"))
    tiles += [_metric_tile(m) for m in record.metrics[:1]]
    known = [b for b in record.bounds if b.met is not None]
    if known:
        met = all(b.met for b in known)
        tiles.append(
            _tile(
                "budget",
                "met" if met else "not met",
                ", ".join(bound_text(b) for b in known if b.met is not None),
                css="good" if met else "bad",
            )
        )
    return el("section", tiles, class_="tiles", aria_label="At a glance")


def _cost_tile(name: str, before: float, after: float, show: words.Show, less: str, more: str) -> Markup:
    shrunk = after <= before
    big = words.ratio(before, after) if shrunk else words.ratio(after, before)
    width = 100 * min(1.0, after / before) if before > 0 else 100.0
    return _tile(
        name,
        join(big.replace("x", "×"), el("small", f" {less if shrunk else more}")),
        f"{show(before)} → {show(after)}",
        el("div", el("i", style=f"width:{width:.1f}%"), class_="meter"),
        hint=f"{name}: reduction {words.reduction(before, after)}",
    )


def _metric_tile(metric: MetricValue) -> Markup:
    value = words.metric(metric, metric.final)
    if metric.change is None:
        return _tile(metric.name, value, "dense model")
    change = el("span", _minus(words.metric_change(metric)), class_="worse" if metric.worse else None)
    return _tile(
        metric.name,
        value,
        join(el("span", f"dense {words.metric(metric, metric.dense)}"), el("br"), change),
    )


def _tile(name: str, big: str, detail: str, bar: Markup | None = None, *, css: str = "", hint: str = "") -> Markup:
    return el(
        "div",
        el("p", name, class_="name"),
        el("p", big, class_="big"),
        bar,
        el("p", detail, class_="detail"),
        class_=f"tile {css}".strip(),
        title=hint or None,
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
        change = el("span", _minus(words.metric_change(m)), class_=css)
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


def _charts(record: ReportRecord) -> Markup | None:
    rows = record.layers
    if not rows:
        return None
    names = [row.label for row in rows]
    figures = [
        _cost_chart(record, names, "Parameters", "params"),
        _cost_chart(record, names, "MACs", "macs"),
        _rank_chart(rows, names),
        _error_chart(record, names),
    ]
    return _section("Layer by layer", figures)


def _cost_chart(record: ReportRecord, names: Sequence[str], title: str, resource: str) -> Markup:
    before = [row.before.get(resource) for row in record.layers]
    after = [row.after.get(resource) for row in record.layers]
    pairs = list(zip(record.layers, after, strict=True))
    series = [
        Series(name="before", css="before", values=before),
        Series(name="after", css="after", values=[None if r.kept else a for r, a in pairs]),
        Series(name="kept as it was", css="kept", values=[a if r.kept else None for r, a in pairs]),
    ]
    tips = [
        f"{row.label}\n{row.layer}\n{words.count(b)} {title if title == 'MACs' else 'parameters'}, "
        + (remark(row) if row.kept else f"now {words.count(a)} ({words.reduction(b, a)} less)")
        for row, b, a in zip(record.layers, before, after, strict=True)
    ]
    chart = columns(names, tips, series, label=f"{title} of each layer, before and after")
    return _figure(f"{title} per layer", chart, series)


def _rank_chart(rows: Sequence[LayerRow], names: Sequence[str]) -> Markup | None:
    most = max((len(row.ranks) for row in rows), default=0)
    if not most:
        return None
    series = [
        Series(
            name="rank" if most == 1 else f"rank {i + 1}",
            css=f"rank{i % 4}",
            values=[row.ranks[i] if len(row.ranks) > i else None for row in rows],
        )
        for i in range(most)
    ]
    tips = [
        f"{row.label}\n{row.layer}\n"
        + (f"{row.method} {words.ranks(row.ranks)}" if row.ranks else row.method or remark(row))
        for row in rows
    ]
    chart = columns(names, tips, series, label="Ranks of each factored layer", overlay=False)
    return _figure("Ranks per layer", chart, series)


def _error_chart(record: ReportRecord, names: Sequence[str]) -> Markup | None:
    rows = record.layers
    if all(row.error is None and row.measured_error is None for row in rows):
        return None
    series = [Series(name="predicted", css="error", values=[row.error for row in rows])]
    if has_measured_errors(record):
        values = [row.measured_error for row in rows]
        series.append(Series(name="measured", css="measured", values=values))
    tips = [f"{row.label}\n{remark(row) if row.kept else _errors(row)}" for row in rows]
    label = "Relative error of each factored layer"
    chart = columns(names, tips, series, label=label, overlay=False, show=lambda v: f"{v:.3g}")
    return _figure("Relative error per layer", chart, series)


def _errors(row: LayerRow) -> str:
    text = f"predicted error {words.error(row.error)}"
    if row.measured_error is None:
        return text
    return f"{text}, measured {words.error(row.measured_error)}"


def _figure(title: str, chart: Markup, series: Sequence[Series]) -> Markup:
    used = [s for s in series if any(v is not None for v in s.values)]
    keys = [el("span", el("i", class_=f"key {s.css}"), s.name) for s in used]
    caption = el("figcaption", el("b", title), el("span", keys, class_="legend"))
    return el("figure", caption, el("div", chart, class_="scroll", tabindex="0"))


def _history(record: ReportRecord) -> Markup | None:
    rows = record.history
    if not rows:
        return None
    curves = [
        ("Training loss", "loss", "loss", [(e.epoch, e.loss) for e in rows]),
        ("Metric", "metric", "metric", [(e.epoch, e.metric) for e in rows if e.metric is not None]),
    ]
    figures: list[Markup] = []
    for title, unit, css, values in curves:
        points = [(float(a), float(b)) for a, b in values if math.isfinite(b)]
        if points:
            chart = line(points, label=f"{title} by epoch", css=css, unit=unit)
            figures.append(el("figure", el("figcaption", el("b", title)), chart))
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
    return _section("Fine-tuning", el("div", figures, class_="pair"), table)


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


def _minus(text: str) -> str:
    """A true minus sign, as wide as the plus."""
    return text.replace("-", "−")
