"""The sections of a sweep: its front as charts, and a row for each budget."""

from __future__ import annotations

from dataclasses import replace

from rankfold.reporting import words
from rankfold.reporting.charts import Dot, linear, logarithmic, plot
from rankfold.reporting.markup import Markup
from rankfold.reporting.sections import Content, Section, content, tips
from rankfold.reporting.sweep.record import Sweep

SHOWN = ("params", "macs", "flash")
"""Resources that always have a column."""


@content.register
def _(sweep: Sweep, *, brief: bool) -> Content:
    return Content(
        title=sweep.model_name or "Sweep",
        kind="rankfold sweep",
        lead=sweep.coverage,
        details=(_headline(sweep),),
        sections=(
            Section(title="What each budget costs", figures=() if brief else _figures(sweep)),
            _plans(sweep, brief=brief),
            Section(
                title="Budgets without a plan",
                lines=[
                    f"{words.bound(p.budget)}: {p.reason.partition(chr(10))[0]}" for p in sweep.points if p.plan is None
                ],
            ),
        ),
    )


def _headline(sweep: Sweep) -> str:
    number, metric = len(sweep.feasible), sweep.metric
    parts = [
        f"{number} plan{'s' * (number != 1)} over {sweep.resource} from one table",
        f"strategy {sweep.strategy}",
        f"predicted loss by {sweep.proxy}",
    ]
    if sweep.measured:
        parts.append(f"{words.count(sweep.measured)} candidates measured")
    if metric is not None:
        samples = "" if metric.samples is None else f" on {words.count(metric.samples)} samples"
        parts.append(f"dense {metric.name} {words.metric(metric, metric.dense)}{samples}")
    parts += [f"{stage} {words.seconds(taken)}" for stage, taken in sweep.timings.items()]
    return " · ".join(parts)


def _plans(sweep: Sweep, *, brief: bool) -> Section:
    best, dense = sweep.front(), sweep.dense
    metric = sweep.metric if any(point.metric is not None for point in sweep.points) else None
    extra = [sweep.resource] if sweep.resource not in SHOWN else []
    rows: list[list[str]] = []
    for point in sweep.feasible:
        cost = point.cost
        assert cost is not None
        macs = words.at_least(words.compact(cost.macs)) if sweep.uncounted else _amount(cost.macs, dense.macs)
        row = [words.bound(point.budget), _amount(cost.params, dense.params), macs]
        row += [_amount(cost.get(name), dense.get(name)) for name in extra]
        row += [
            words.size(cost.weight_bytes),
            words.NONE if point.predicted_loss is None else f"{point.predicted_loss:.3g}",
        ]
        if metric is not None:
            value = replace(metric, compressed=point.metric, percent=metric.in_percent)
            row += [words.metric(value, point.metric), words.metric_change(value).removesuffix(" points")]
        rows.append([*row, "front" if point in best else ""])
    loss = ">loss" if brief else ">predicted loss"  # shorter, for a terminal
    names = [f">{metric.name}", ">change"] if metric is not None else []
    note = (
        "Shares are of the dense model. A point is on the front if no other point is better in both the swept resource "
        "and the predicted loss."
    )
    return Section(
        title="Plans",
        heads=["budget", ">params", ">MACs", *(f">{name}" for name in extra), ">weights", loss, *names, ""],
        rows=rows,
        notes=[] if brief else [note],
    )


def _amount(value: int, dense: int) -> str:
    return f"{words.compact(value)} ({words.percent(value / dense)})" if dense else words.compact(value)


def _figures(sweep: Sweep) -> list[Markup]:
    """Return size against predicted loss, with the front as a line, and against the metric if measured."""
    points, metric = sweep.feasible, sweep.metric
    if not points:
        return []
    across = linear([sweep.share(p) for p in points], lambda v: f"{100 * v:g} %", number=6)
    below, left = f"{sweep.resource} left, as a share of the dense model", f"by {sweep.resource} left"
    best, tipped = sweep.front(), list(zip(points, tips(_plans(sweep, brief=False)), strict=True))
    dots = [
        Dot(x=sweep.share(p), y=p.predicted_loss or 0.0, tip=tip, css="loss" if p in best else "kept")
        for p, tip in tipped
    ]
    positive = [dot.y for dot in dots if dot.y > 0]
    up = logarithmic(positive) if positive else linear([0.0, 1.0], words.tick)
    line = [(sweep.share(p), p.predicted_loss or 0.0) for p in best]
    figures = [plot(f"Predicted loss {left}", dots, line, across, up, css="loss", below=below)]
    dots = [Dot(x=sweep.share(p), y=p.metric, tip=tip, css="metric") for p, tip in tipped if p.metric is not None]
    if metric is not None and dots:
        up = linear([metric.dense, *(dot.y for dot in dots)], lambda v: words.metric(metric, v), number=6)
        level = (metric.dense, f"dense {words.metric(metric, metric.dense)}")
        line = sorted((dot.x, dot.y) for dot in dots)
        title = f"Measured {metric.name} {left}"
        figures.append(plot(title, dots, line, across, up, css="metric", below=below, level=level))
    return figures
