"""The charts of a report: by layer, and by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rankfold.reporting.charts import Dot, Series, columns, linear, plot
from rankfold.reporting.markup import Markup
from rankfold.reporting.report import Report


def layer_figures(report: Report, tips: Sequence[str]) -> list[Markup]:
    """Return charts of the parameters, MACs, ranks and errors of every layer, where available."""
    rows = report.layers
    names = [row.label for row in rows]
    figures: list[Markup] = []
    for resource, title in (("params", "Parameters per layer"), ("macs", "MACs per layer")):
        after = [None if row.kept else row.after.get(resource) for row in rows]
        kept = [row.after.get(resource) if row.kept else None for row in rows]
        series = [
            Series(name="before", css="before", values=[row.before.get(resource) for row in rows]),
            Series(name="after", css="after", values=after),
            Series(name="kept", css="kept", values=kept),
        ]
        figures += [columns(names, tips, series, label=title)] if rows else []
    most = max((len(row.ranks) for row in rows), default=0)
    ranks = [[row.ranks[i] if len(row.ranks) > i else None for row in rows] for i in range(most)]
    series = [
        Series(name=f"rank {i + 1}" if most > 1 else "rank", css=f"rank{i % 4}", values=values)
        for i, values in enumerate(ranks)
    ]
    figures += [columns(names, tips, series, label="Ranks per layer", overlay=False)] if series else []
    series = [
        Series(name="predicted", css="error", values=[row.error for row in rows]),
        Series(name="measured", css="measured", values=[row.measured_error for row in rows]),
    ]
    if any(value is not None for one in series for value in one.values):
        title = "Relative error per layer"
        figures.append(columns(names, tips, series, label=title, overlay=False, show=lambda v: f"{v:.3g}"))
    return figures


def history_figures(report: Report) -> list[Markup]:
    """Return the loss and the metric over the epochs of fine-tuning; a curve needs two epochs."""
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
