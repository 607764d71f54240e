"""The report's figures: which numbers of the layers and of fine-tuning are drawn, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankfold.reporting import words
from rankfold.reporting.charts import Series, columns, line
from rankfold.reporting.markup import Markup, el
from rankfold.reporting.record import LayerRow, ReportRecord
from rankfold.reporting.summary import has_measured_errors, remark


def layer_figures(record: ReportRecord) -> list[Markup]:
    """Return parameters, MACs, ranks and errors of every layer; what is not known has no figure."""
    names = [row.label for row in record.layers]
    figures = [
        _cost_chart(record, names, "Parameters", "params"),
        _cost_chart(record, names, "MACs", "macs"),
        _rank_chart(record.layers, names),
        _error_chart(record, names),
    ]
    return [figure for figure in figures if figure is not None]


def history_figures(record: ReportRecord) -> list[Markup]:
    """Return loss and metric over the epochs of fine-tuning."""
    rows = record.history
    curves = [
        ("Training loss", "loss", [(e.epoch, e.loss) for e in rows]),
        ("Metric", "metric", [(e.epoch, e.metric) for e in rows if e.metric is not None]),
    ]
    figures: list[Markup] = []
    for title, kind, values in curves:
        points = [(float(a), float(b)) for a, b in values if math.isfinite(b)]
        if points:
            chart = line(points, label=f"{title} by epoch", css=kind, unit=kind)
            figures.append(el("figure", el("figcaption", el("b", title)), chart))
    return figures


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
