"""The plots of an analysis as inline SVG: Figs 2 and 5 of the similarity paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankfold.cost.exploration import Space
from rankfold.reporting import words
from rankfold.reporting.charts import Frame, figure, linear
from rankfold.reporting.markup import Markup, el

SIDE, LEFT = 240.0, 52.0
BOX, GAP, ROW, NAMES = 160.0, 24.0, 44.0, 110.0
FITTING = 19
"""Number of characters that fit into a box."""


def plane(spaces: Sequence[Space], title: str) -> Markup | None:
    """Return a map of the valid settings by parameter and MAC reduction; darker cells have a larger share.

    For several spaces, the shares are averaged over those that have a valid setting.
    """
    tables = [(space.histogram, space.size) for space in spaces if space.histogram is not None and space.size]
    if not tables:
        return None
    bins = tables[0][0].bins
    shares = {
        (p, m): sum(h.counts[p][m] / size for h, size in tables) / len(tables) for p in range(bins) for m in range(bins)
    }
    axis = linear([0.0, 1.0], lambda v: f"{100 * v:g} %")
    frame, side = Frame(across=axis, up=axis, left=LEFT, top=0.0, width=SIDE, height=SIDE), SIDE / bins
    cells: list[Markup] = []
    for (p, m), share in shares.items():
        if share:
            # Shares span many powers of ten, so the darkness is logarithmic.
            depth = max(0.12, 1 + math.log10(share / max(shares.values())) / 5)
            ranges = [f"{100 * k / bins:g}–{100 * (k + 1) / bins:g} %" for k in (p, m)]
            tip = f"parameters −{ranges[0]}, MACs −{ranges[1]}: {words.percent(share)} of the settings"
            x, y = frame.at(p / bins, (m + 1) / bins)
            cell = el("rect", x=x, y=y, width=side, height=side, class_="cell", fill_opacity=depth)
            cells.append(el("g", el("title", tip), cell))
    grid = frame.grid("fewer parameters →, fewer MACs ↑")
    return figure(title, grid, cells, width=LEFT + SIDE + 8, height=SIDE + 44, css="plane")


def chains(name: str, dense: str, spaces: Sequence[Space]) -> Markup | None:
    """Return how each method replaces a layer by a chain of smaller ones, with ranks as numbers (Fig. 5)."""
    shown = [("original", (dense,)), *((space.method, space.stages) for space in spaces if space.stages)]
    if len(shown) == 1:
        return None
    longest = max(len(stages) for _, stages in shown)
    marks: list[Markup] = []
    for row, (method, stages) in enumerate(shown):
        y = row * ROW
        marks.append(el("text", method, x=NAMES - 14, y=y + 20, class_="name end"))
        for i, stage in enumerate(stages):
            x = NAMES + i * (BOX + GAP)
            if i:
                marks.append(el("line", x1=x - GAP, x2=x, y1=y + 15, y2=y + 15, class_="base"))
            marks.append(el("rect", x=x, y=y, width=BOX, height=30, rx=5, class_="box"))
            # Some descriptions are wider than the box.
            size = None if len(stage) <= FITTING else f"font-size:{12 * FITTING / len(stage):.1f}px"
            marks.append(el("text", stage, x=x + BOX / 2, y=y + 19, class_="mid value", style=size))
    width = max(NAMES + longest * (BOX + GAP), 880)
    layer = el("span", dense, class_="muted")
    return figure(name, marks, width=width, height=len(shown) * ROW, css="chain", caption=layer)
