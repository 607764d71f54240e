"""Charts as inline SVG: coloured by the page's style sheet, with a title on every mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rankfold.reporting import words
from rankfold.reporting.markup import Markup, el, join

WIDTH, HEIGHT = 1040.0, 190.0
LEFT, RIGHT, TOP = 56.0, 6.0, 12.0
MAX_NAMED = 28
"""Up to so many columns each one has its name below; beyond, groups of layers have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One kind of bar; a value that is None has no bar. `css` is its class in the style sheet."""

    name: str
    css: str
    values: Sequence[float | None]


def columns(
    names: Sequence[str],
    tips: Sequence[str],
    series: Sequence[Series],
    *,
    label: str,
    overlay: bool = True,
    show: Callable[[float], str] = words.tick,
) -> Markup:
    """Return a column chart, one slot a layer, in network order.

    Parameters
    ----------
    names : sequence of str
        Of the layers.
    tips : sequence of str
        What a slot says under the pointer and to a screen reader.
    series : sequence of Series
        Drawn one over the other in this order if `overlay`, else side by side.
    label : str
        What the chart shows, for a screen reader.
    show : callable
        Writes the numbers at the axis.
    """
    values = [v for s in series for v in s.values if v is not None and math.isfinite(v)]
    steps = ticks(0.0, max(values, default=0.0) or 1.0)
    top = steps[-1]
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    width = min(0.8 * slot if slot > 4 else slot - 0.5, 52.0)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP) * (1 - value / top)

    marks: list[Markup] = []
    for i, tip in enumerate(tips):
        start = LEFT + i * slot + (slot - width) / 2
        bars: list[Markup] = []
        shown = [(s, v) for s in series if (v := s.values[i]) is not None and math.isfinite(v)]
        each = width if overlay else width / max(1, len(shown))
        for j, (s, value) in enumerate(shown):
            height = max(1.0, HEIGHT - y(value)) if value > 0 else 0.0
            x = start if overlay else start + j * each
            bars.append(el("rect", x=x, y=HEIGHT - height, width=each, height=height, class_=s.css))
        hit = el("rect", x=LEFT + i * slot, y=TOP, width=slot, height=HEIGHT - TOP, class_="hit")
        marks.append(el("g", el("title", tip), hit, bars, class_="col"))
    below, depth = _axis(names, slot)
    return el(
        "svg",
        _grid(steps, y, show),
        marks,
        below,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT + depth:g}",
        role="img",
        aria_label=label,
        class_="columns",
    )


def line(points: Sequence[tuple[float, float]], *, label: str, css: str, unit: str) -> Markup:
    """Return a small line chart of (x, y) points, both finite; the last one is labelled."""
    width, height, left = 500.0, 150.0, 56.0
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    steps = ticks(min(ys), max(ys))
    low, high = steps[0], steps[-1]
    span = (max(xs) - min(xs)) or 1.0

    def x(value: float) -> float:
        return left + 10 + (width - left - 70) * (value - min(xs)) / span

    def y(value: float) -> float:
        return TOP + (height - TOP) * (1 - (value - low) / ((high - low) or 1.0))

    path = " ".join(f"{'ML'[i > 0]}{x(a):.1f} {y(b):.1f}" for i, (a, b) in enumerate(points))
    radius = 3.0 if len(points) <= 40 else 1.5
    dots = [el("g", el("title", f"epoch {a:g}: {unit} {b:.4g}"), _dot(x(a), y(b), radius, css)) for a, b in points]
    end = points[-1]
    last = el("text", f"{end[1]:.4g}", x=x(end[0]) + 8, y=y(end[1]) + 4, class_="value")
    first_x = el("text", f"epoch {xs[0]:g}", x=x(xs[0]), y=height + 16, class_="tick start")
    last_x = el("text", f"{xs[-1]:g}", x=x(xs[-1]), y=height + 16, class_="tick end")
    return el(
        "svg",
        _grid(steps, y, lambda v: f"{v:.4g}", left=left, width=width),
        el("path", d=path, class_=f"curve {css}"),
        dots,
        last,
        first_x,
        last_x if len(points) > 1 else None,
        viewBox=f"0 0 {width:g} {height + 22:g}",
        role="img",
        aria_label=label,
        class_="line",
    )


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Return round numbers, evenly spaced, that enclose [low, high]; at least two of them."""
    span = high - low
    if span <= 0:
        span = abs(high) * 0.1 or 1.0
        low, high = low - span / 2, high + span / 2
    magnitude = 10.0 ** math.floor(math.log10(span / number))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= number)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def groups(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return runs of layers that share the beginning of their paths, as (last part, length).

    The beginning is as short as gives four runs, unless a longer one gives more than 16.
    """
    paths = [tuple(name.split(".")) for name in names]
    runs = [("", len(names))]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        heads = [path[:depth] for path in paths]
        finer = [(head[-1], len(list(run))) for head, run in groupby(heads)]
        if len(runs) > 1 and len(finer) > 16:
            break
        runs = finer
        if len(runs) >= 4:
            break
    return runs


def _dot(x: float, y: float, radius: float, css: str) -> Markup:
    return el("circle", cx=x, cy=y, r=radius, class_=f"dot {css}")


def _grid(
    steps: Sequence[float],
    y: Callable[[float], float],
    show: Callable[[float], str],
    left: float = LEFT,
    width: float = WIDTH,
) -> Markup:
    out: list[Markup] = []
    for value in steps:
        css = "base" if value == steps[0] else "grid"
        out.append(el("line", x1=left, x2=width - RIGHT, y1=y(value), y2=y(value), class_=css))
        out.append(el("text", show(value), x=left - 8, y=y(value) + 4, class_="tick end"))
    return join(out)


def _axis(names: Sequence[str], slot: float) -> tuple[Markup, float]:
    """Return the names below the columns, and how deep they reach."""
    if len(names) <= MAX_NAMED:
        return _names(names, slot)
    runs = groups(names)
    if len(runs) > len(names) / 2:  # no structure in the names: every so many
        step = math.ceil(len(names) / 12)
        runs = [(names[i], min(step, len(names) - i)) for i in range(0, len(names), step)]
    out: list[Markup] = []
    x = LEFT
    for i, (name, length) in enumerate(runs):
        wide = length * slot
        band = el("rect", x=x, y=HEIGHT + 4, width=wide, height=18, class_=f"band b{i % 2}")
        room = int(wide / 7)  # about 7 units a character
        text = None
        if room >= min(3, len(name)) and (len(name) <= room or room >= 6):
            text = el("text", _short(name, room), x=x + wide / 2, y=HEIGHT + 17, class_="tick mid")
        out.append(el("g", el("title", f"{name}: {length} layers"), band, text))
        x += wide
    return join(out), 26.0


def _names(names: Sequence[str], slot: float) -> tuple[Markup, float]:
    longest = max((min(len(n), 20) for n in names), default=0)
    flat = longest * 7 <= slot - 4
    out: list[Markup] = []
    for i, name in enumerate(names):
        x = LEFT + (i + 0.5) * slot
        text = _short(name, 20)
        if flat:
            out.append(el("text", text, x=x, y=HEIGHT + 18, class_="tick mid"))
        else:
            turn = f"translate({x + 4:.1f} {HEIGHT + 14:g}) rotate(-38)"
            out.append(el("text", text, transform=turn, class_="tick end"))
    return join(out), 26.0 if flat else 22 + longest * 7 * 0.62


def _short(name: str, room: int) -> str:
    """The end of a path tells more than its beginning; it is cut at a dot where one is near."""
    if len(name) <= room:
        return name
    end = name[-(room - 1) :]
    _, dot, rest = end.partition(".")
    return "…" + (rest if dot and len(rest) >= room // 2 else end)
