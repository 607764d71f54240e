"""The charts of a report: layer by layer, and epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import replace

from rankfold.reporting import words
from rankfold.reporting.charts import Dot, Series, columns, linear, plot
from rankfold.reporting.layers import remark
from rankfold.reporting.markup import Markup
from rankfold.reporting.report import Report


def layer_figures(report: Report) -> list[Markup]:
    """Return parameters, MACs, ranks and errors of every layer; what is not known has no figure."""
    rows = report.layers
    if not rows:
        return []
    figures = [_cost_chart(report, "params", "parameters"), _cost_chart(report, "macs", "MACs")]
    if any(row.ranks for row in rows):
        figures.append(_rank_chart(report))
    if any(row.error is not None or row.measured_error is not None for row in rows):
        figures.append(_error_chart(report))
    return figures


def history_figures(report: Report) -> list[Markup]:
    """Return loss and metric over the epochs of fine-tuning; one epoch makes no curve."""
    curves = {
        "loss": ("Training loss", [(float(e.epoch), e.loss) for e in report.history]),
        "metric": ("Metric", [(float(e.epoch), e.metric) for e in report.history if e.metric is not None]),
    }
    figures: list[Markup] = []
    for css, (title, values) in curves.items():
        points = [(epoch, value) for epoch, value in values if math.isfinite(value)]
        if len(points) < 2:
            continue
        across = linear([x for x, _ in points], lambda v: f"{v:g}" if v == int(v) else "", number=6)
        dots = [Dot(x=x, y=y, tip=f"epoch {x:g}: {css} {y:.4g}", css=css) for x, y in points]
        dots[-1] = replace(dots[-1], label=f"{points[-1][1]:.4g}")
        up = linear([y for _, y in points], lambda v: f"{v:.4g}")
        figures.append(plot(title, dots, points, across, up, css=css, below="epoch", size=(500.0, 150.0)))
    return figures


def _cost_chart(report: Report, resource: str, title: str) -> Markup:
    names: list[str] = []
    tips: list[str] = []
    before: list[float | None] = []
    after: list[float | None] = []
    kept: list[float | None] = []
    for row in report.layers:
        old, new = row.before.get(resource), row.after.get(resource)
        change = remark(row) if row.kept else f"now {words.count(new)} ({words.reduction(old, new)} less)"
        tips.append(f"{row.label}\n{row.layer}\n{words.count(old)} {title}, {change}")
        names.append(row.label)
        before.append(old)
        after.append(None if row.kept else new)
        kept.append(new if row.kept else None)
    series = [
        Series(name="before", css="before", values=before),
        Series(name="after", css="after", values=after),
        Series(name="kept", css="kept", values=kept),
    ]
    return columns(names, tips, series, label=f"{title[0].upper()}{title[1:]} per layer")


def _rank_chart(report: Report) -> Markup:
    rows = report.layers
    most = max(len(row.ranks) for row in rows)
    series = [
        Series(
            name="rank" if most == 1 else f"rank {i + 1}",
            css=f"rank{i % 4}",
            values=[row.ranks[i] if len(row.ranks) > i else None for row in rows],
        )
        for i in range(most)
    ]
    what = [f"{row.method} {words.ranks(row.ranks)}" if row.ranks else row.method or remark(row) for row in rows]
    tips = [f"{row.label}\n{row.layer}\n{text}" for row, text in zip(rows, what, strict=True)]
    return columns([row.label for row in rows], tips, series, label="Ranks per layer", overlay=False)


def _error_chart(report: Report) -> Markup:
    rows = report.layers
    series = [
        Series(name="predicted", css="error", values=[row.error for row in rows]),
        Series(name="measured", css="measured", values=[row.measured_error for row in rows]),
    ]
    tips: list[str] = []
    for row in rows:
        measured = "" if row.measured_error is None else f", measured {words.error(row.measured_error)}"
        errors = f"predicted error {words.error(row.error)}{measured}"
        tips.append(f"{row.label}\n{remark(row) if row.kept else errors}")
    names, title = [row.label for row in rows], "Relative error per layer"
    return columns(names, tips, series, label=title, overlay=False, show=lambda v: f"{v:.3g}")
