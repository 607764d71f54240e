"""The plots of an analysis as inline SVG: the similarity paper's Figs 2 and 5-7."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankfold.cost.exploration import METRICS, Space
from rankfold.reporting import words
from rankfold.reporting.charts import Series, columns, figure, svg
from rankfold.reporting.exploration.record import Average
from rankfold.reporting.markup import Markup, el, join

SIDE, LEFT, BELOW = 240.0, 52.0, 34.0
BOX, GAP, ROW = 160.0, 24.0, 44.0
FITTING = 19
"""The number of characters that fit into a box."""
COLOURS = 8


def plane(spaces: Sequence[Space], title: str) -> Markup | None:
    """Return where valid settings lie by parameter and MAC reduction: a map of their shares, darker is more.

    Of several spaces it is the mean of their shares; those without a valid setting do not count.
    """
    tables = [(space.histogram, space.size) for space in spaces if space.histogram is not None and space.size]
    if not tables:
        return None
    bins = tables[0][0].bins
    shares = [
        [sum(h.counts[p][m] / size for h, size in tables) / len(tables) for m in range(bins)] for p in range(bins)
    ]
    most = max(max(line) for line in shares)
    side = SIDE / bins
    cells: list[Markup] = []
    for p, line in enumerate(shares):
        for m, share in enumerate(line):
            if not share:
                continue
            # Shares span many powers of ten: the darkness falls with each of them.
            depth = max(0.12, 1 + math.log10(share / most) / 5)
            tip = f"parameters −{_bin(p, bins)}, MACs −{_bin(m, bins)}: {words.percent(share)} of the settings"
            y = SIDE - (m + 1) * side
            cell = el("rect", x=LEFT + p * side, y=y, width=side, height=side, class_="cell", fill_opacity=depth)
            cells.append(el("g", el("title", tip), cell))
    label = f"{title}: valid settings by parameter and MAC reduction"
    chart = svg(LEFT + SIDE + 8, SIDE + BELOW + 8, _frame(), cells, label=label, css="plane", top=-6.0)
    return figure(title, chart)


def _bin(k: int, bins: int) -> str:
    return f"{100 * k / bins:g}–{100 * (k + 1) / bins:g} %"


def _frame() -> Markup:
    marks: list[Markup] = []
    for k in range(5):
        share, at = f"{25 * k} %", SIDE * k / 4
        marks.append(el("line", x1=LEFT, x2=LEFT + SIDE, y1=SIDE - at, y2=SIDE - at, class_="grid"))
        marks.append(el("line", x1=LEFT + at, x2=LEFT + at, y1=0, y2=SIDE, class_="grid"))
        marks.append(el("text", share, x=LEFT - 6, y=SIDE - at + 4, class_="tick end"))
        marks.append(el("text", share, x=LEFT + at, y=SIDE + 16, class_="tick mid"))
    marks.append(el("text", "fewer parameters", x=LEFT + SIDE / 2, y=SIDE + 32, class_="tick mid"))
    turned = f"translate(10 {SIDE / 2:g}) rotate(-90)"
    marks.append(el("text", "fewer MACs", transform=turned, class_="tick mid"))
    return join(marks)


def chains(name: str, dense: str, spaces: Sequence[Space]) -> Markup | None:
    """Return how each method writes a layer as a chain of smaller ones, ranks for numbers (Fig. 5)."""
    shown = [("original", (dense,)), *((space.method, space.stages) for space in spaces if space.stages)]
    if len(shown) == 1:
        return None
    longest = max(len(stages) for _, stages in shown)
    start = 110.0
    marks: list[Markup] = []
    for row, (method, stages) in enumerate(shown):
        y = row * ROW
        marks.append(el("text", method, x=start - 14, y=y + 20, class_="name end"))
        for i, stage in enumerate(stages):
            x = start + i * (BOX + GAP)
            if i:
                marks.append(el("line", x1=x - GAP, x2=x, y1=y + 15, y2=y + 15, class_="base"))
            marks.append(el("rect", x=x, y=y, width=BOX, height=30, rx=5, class_="box"))
            # The words of some stages are longer than their box is wide.
            size = None if len(stage) <= FITTING else f"font-size:{12 * FITTING / len(stage):.1f}px"
            marks.append(el("text", stage, x=x + BOX / 2, y=y + 19, class_="mid value", style=size))
    width = max(start + longest * (BOX + GAP), 760)
    label = "The layers that each method makes of one"
    chart = svg(width, len(shown) * ROW, marks, label=label, css="chain")
    return figure(name, chart, el("span", dense, class_="muted"))


def score_chart(averages: Sequence[Average], title: str) -> Markup:
    """Return the mean scores of every metric, methods side by side (Figs 6 and 7)."""
    names = [metric for metric in METRICS if any(metric in a.scores for a in averages)]
    return _chart([(a.method, [a.scores.get(name) for name in names]) for a in averages], names, title, percent=False)


def reduction_chart(averages: Sequence[Average], title: str) -> Markup:
    """Return best and worst reductions and coverage, methods side by side; growth has no column."""
    fields = (
        "best_params",
        "worst_params",
        "params_coverage",
        "best_macs",
        "worst_macs",
        "macs_coverage",
        "best_memory",
    )
    names = [name.replace("_", " ").replace("macs", "MACs") for name in fields]
    series = [(a.method, [100 * float(getattr(a, name)) for name in fields]) for a in averages]
    return _chart(series, names, title, percent=True)


def _chart(
    series: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], title: str, *, percent: bool
) -> Markup:
    def show(value: float | None) -> str:
        return words.NONE if value is None else f"{value:.1f} %" if percent else f"{value:.1f}"

    tips = ["\n".join([name, *(f"{m}: {show(values[i])}" for m, values in series)]) for i, name in enumerate(names)]
    bars = [Series(name=m, css=f"rank{i % COLOURS}", values=values) for i, (m, values) in enumerate(series)]
    axis = (lambda v: f"{v:g} %") if percent else (lambda v: f"{v:g}")
    return columns(names, tips, bars, label=title, overlay=False, show=axis)
