"""The front as inline SVG: cost against predicted damage, and against the measured metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankfold.reporting import words
from rankfold.reporting.charts import ticks
from rankfold.reporting.markup import Markup, el, join
from rankfold.reporting.sweep.record import SweepPoint, SweepRecord
from rankfold.reporting.sweep.sheets import damage

WIDTH, HEIGHT = 1040.0, 300.0
LEFT, RIGHT, TOP, BELOW = 66.0, 24.0, 14.0, 44.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Round numbers at an axis, and where a value lies on it, 0..1."""

    steps: Sequence[float]
    place: Callable[[float], float]
    show: Callable[[float], str]


def damage_plot(sweep: SweepRecord) -> Markup | None:
    """Return cost against predicted damage, the front as a line; None if no budget has a plan."""
    points = [(p, value) for p in sweep.feasible if (value := p.damage) is not None]
    positive = [value for _, value in points if value > 0]
    if not points:
        return None
    axis = _logarithmic(positive) if positive else _linear([0.0, 1.0], words.tick)
    best = {id(p) for p in sweep.front()}
    title = f"Predicted damage by {sweep.resource} left"
    marks = [(p, value, "loss" if id(p) in best else "kept") for p, value in points]
    line = [(sweep.share(p), p.damage or 0.0) for p in sweep.front()]
    return _figure(sweep, title, marks, line, axis, css="loss")


def metric_plot(sweep: SweepRecord) -> Markup | None:
    """Return cost against the measured metric, the dense model's value as a line; None if none was measured."""
    metric = sweep.metric
    points = [(p, value) for p in sweep.feasible if (value := p.metric) is not None]
    if metric is None or not points:
        return None
    axis = _linear([metric.dense, *(value for _, value in points)], lambda v: words.metric(metric, v))
    at = TOP + (HEIGHT - TOP) * (1 - axis.place(metric.dense))
    beside = at + 16 if axis.place(metric.dense) > 0.5 else at - 6
    dense = join(
        el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="base", stroke_dasharray="5 4"),
        el("text", f"dense {words.metric(metric, metric.dense)}", x=LEFT + 8, y=beside, class_="value"),
    )
    line = sorted((sweep.share(p), value) for p, value in points)
    marks = [(p, value, "metric") for p, value in points]
    return _figure(
        sweep, f"Measured {metric.name} by {sweep.resource} left", marks, line, axis, css="metric", also=dense
    )


def _figure(
    sweep: SweepRecord,
    title: str,
    marks: Sequence[tuple[SweepPoint, float, str]],
    line: Sequence[tuple[float, float]],
    axis: _Axis,
    *,
    css: str,
    also: Markup | None = None,
) -> Markup:
    across = _linear([sweep.share(p) for p, _, _ in marks], lambda v: f"{100 * v:g} %")

    def at(share: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * across.place(share)
        return x, TOP + (HEIGHT - TOP) * (1 - axis.place(value))

    path = " ".join(f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(at(*pair) for pair in line))
    dots: list[Markup] = []
    for point, value, kind in marks:
        x, y = at(sweep.share(point), value)
        hit = el("circle", cx=x, cy=y, r=12, class_="hit")
        dots.append(el("g", el("title", tip(sweep, point)), hit, el("circle", cx=x, cy=y, r=4.5, class_=f"dot {kind}")))
    chart = el(
        "svg",
        _frame(axis, across, sweep.resource),
        also,
        el("path", d=path, class_=f"curve {css}") if path else None,
        dots,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT + BELOW:g}",
        role="img",
        aria_label=title,
        class_="columns front",
    )
    return el("figure", el("figcaption", el("b", title)), el("div", chart, class_="scroll", tabindex="0"))


def tip(sweep: SweepRecord, point: SweepPoint) -> str:
    """Return what a point says under the pointer and to a screen reader."""
    cost, dense = point.cost, sweep.dense
    assert cost is not None
    macs = f"{words.count(cost.macs)}, {words.reduction(dense.macs, cost.macs)} fewer"
    if sweep.uncounted:
        macs = words.at_least(words.count(cost.macs))
    lines = [
        point.budget,
        f"parameters {words.count(cost.params)}, {words.reduction(dense.params, cost.params)} fewer",
        f"MACs {macs}",
        f"weights {words.size(cost.weight_bytes)}",
        f"predicted damage {damage(point.damage)}",
    ]
    if sweep.metric is not None and point.metric is not None:
        lines.append(f"{sweep.metric.name} {words.metric(sweep.metric, point.metric)}")
    return "\n".join(lines)


def _frame(axis: _Axis, across: _Axis, resource: str) -> Markup:
    marks: list[Markup] = []
    for value in axis.steps:
        y = TOP + (HEIGHT - TOP) * (1 - axis.place(value))
        marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(el("text", axis.show(value), x=LEFT - 8, y=y + 4, class_="tick end"))
    for value in across.steps:
        x = LEFT + (WIDTH - LEFT - RIGHT) * across.place(value)
        marks.append(el("line", x1=x, x2=x, y1=TOP, y2=HEIGHT, class_="grid"))
        marks.append(el("text", across.show(value), x=x, y=HEIGHT + 18, class_="tick mid"))
    marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT, y2=HEIGHT, class_="base"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(el("text", f"{resource} left, of the model as it is", x=middle, y=HEIGHT + 38, class_="tick mid"))
    return join(marks)


def _linear(values: Sequence[float], show: Callable[[float], str]) -> _Axis:
    steps = ticks(min(values), max(values), 6)
    low, high = steps[0], steps[-1]
    return _Axis(steps=steps, place=lambda v: (v - low) / (high - low), show=show)


def _logarithmic(values: Sequence[float]) -> _Axis:
    """Damages span many powers of ten; what is zero lies at the bottom."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    each = -(-(high - low) // 8)
    steps = [10.0**k for k in range(low, high + 1, each)]

    def place(value: float) -> float:
        return 0.0 if value <= 0 else max(0.0, (math.log10(value) - low) / (high - low))

    return _Axis(steps=steps, place=place, show=lambda v: f"{v:g}")
