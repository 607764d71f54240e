"""Charts as inline SVG figures, colored by the page's style sheet, with a tooltip on every mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rankfold.reporting import words
from rankfold.reporting.markup import Child, Markup, el, join

WIDTH, HEIGHT = 1040.0, 190.0
LEFT, RIGHT, TOP = 56.0, 6.0, 12.0
MAX_NAMED = 28
"""Up to this number of columns, each is labeled; beyond it, groups of layers are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One kind of bar; None values are left out. `css` is its class in the style sheet."""

    name: str
    css: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Round numbers along an axis, and the position of a value on it, 0..1."""

    steps: Sequence[float]
    place: Callable[[float], float]
    show: Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a plot with its tooltip, its CSS class, and the label next to it."""

    x: float
    y: float
    tip: str
    css: str
    label: str = ""


def linear(values: Sequence[float], show: Callable[[float], str], number: int = 4) -> Axis:
    """Return an axis that covers the values."""
    steps = ticks(min(values), max(values), number)
    low, high = steps[0], steps[-1]
    return Axis(steps=steps, place=lambda v: (v - low) / (high - low), show=show)


def logarithmic(values: Sequence[float]) -> Axis:
    """Return an axis of powers of ten that covers positive values; zero is at its bottom."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    steps = [10.0**k for k in range(low, high + 1, -(-(high - low) // 8))]

    def place(value: float) -> float:
        return 0.0 if value <= 0 else max(0.0, (math.log10(value) - low) / (high - low))

    return Axis(steps=steps, place=place, show=lambda v: f"{v:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The area of a chart with its vertical axis and, optionally, a horizontal one."""

    up: Axis
    across: Axis | None = None
    left: float = LEFT
    top: float = TOP
    width: float = WIDTH - LEFT - RIGHT
    height: float = HEIGHT - TOP

    @property
    def bottom(self) -> float:
        """The vertical position of the base line."""
        return self.top + self.height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a value."""
        across = self.across.place(x) if self.across is not None else x
        return self.left + self.width * across, self.bottom - self.height * self.up.place(y)

    def grid(self, below: str = "") -> Markup:
        """Return grid lines with their numbers, and the title of the horizontal axis."""
        marks: list[Markup] = []
        for value in self.up.steps:
            _, y = self.at(0.0, value)
            css = "base" if value == self.up.steps[0] else "grid"
            marks.append(el("line", x1=self.left, x2=self.left + self.width, y1=y, y2=y, class_=css))
            marks.append(el("text", self.up.show(value), x=self.left - 8, y=y + 4, class_="tick end"))
        across = self.across
        for value, name in [(v, across.show(v)) for v in across.steps] if across is not None else ():
            x, _ = self.at(value, 0.0)
            marks.append(el("line", x1=x, x2=x, y1=self.top, y2=self.bottom, class_="grid"))
            marks.append(el("text", name, x=x, y=self.bottom + 18, class_="tick mid"))
        middle = self.left + self.width / 2
        return join(marks, el("text", below, x=middle, y=self.bottom + 38, class_="tick mid") if below else None)


def figure(title: str, *marks: Child, width: float, height: float, css: str, caption: Child = None) -> Markup:
    """Return a drawing with its title; it scrolls on a narrower page."""
    box = f"0 0 {width:g} {height:g}"
    drawing = el("svg", *marks, viewBox=box, role="img", aria_label=title, class_=css)
    heading = el("figcaption", el("b", title), caption)
    return el("figure", heading, el("div", drawing, class_="scroll", tabindex="0"))


def columns(
    names: Sequence[str],
    tips: Sequence[str],
    series: Sequence[Series],
    *,
    label: str,
    overlay: bool = True,
    show: Callable[[float], str] = words.tick,
) -> Markup:
    """Return a column chart with a legend and one slot per name, such as the layers in network order.

    Each slot has a tooltip from `tips`. The series are drawn over each other if `overlay`, otherwise side by side.
    """
    values = [v for s in series for v in s.values if v is not None and math.isfinite(v)]
    frame = Frame(up=linear([0.0, max(values, default=0.0) or 1.0], show))
    slot = frame.width / max(1, len(names))
    width = min(0.8 * slot if slot > 4 else slot - 0.5, 52.0)
    marks: list[Markup] = []
    for i, tip in enumerate(tips):
        start = LEFT + i * slot + (slot - width) / 2
        bars: list[Markup] = []
        shown = [(s, v) for s in series if (v := s.values[i]) is not None and math.isfinite(v)]
        each = width if overlay else width / max(1, len(shown))
        for j, (s, value) in enumerate(shown):
            height = max(1.0, frame.height * frame.up.place(value)) if value > 0 else 0.0
            x = start if overlay else start + j * each
            bars.append(el("rect", x=x, y=HEIGHT - height, width=each, height=height, class_=s.css))
        hit = el("rect", x=LEFT + i * slot, y=TOP, width=slot, height=frame.height, class_="hit")
        marks.append(el("g", el("title", tip), hit, bars, class_="col"))
    below, depth = _names(names, slot) if len(names) <= MAX_NAMED else (_bands(names, slot), 26.0)
    present = [s for s in series if any(v is not None for v in s.values)]
    keys = el("span", [el("span", el("i", class_=f"key {s.css}"), s.name) for s in present], class_="legend")
    return figure(label, frame.grid(), marks, below, width=WIDTH, height=HEIGHT + depth, css="columns", caption=keys)


def plot(
    label: str,
    dots: Sequence[Dot],
    curve: Sequence[tuple[float, float]],
    across: Axis,
    up: Axis,
    *,
    css: str,
    below: str,
    level: tuple[float, str] | None = None,
    size: tuple[float, float] = (WIDTH, 300.0),
) -> Markup:
    """Return dots, and a line through the points of `curve`.

    `css` is the class of the line, `below` the title of the horizontal axis, and `level` a dashed horizontal line: its
    height and its name.
    """
    width, height = size
    frame = Frame(across=across, up=up, left=66.0, width=width - 90.0, height=height - TOP)
    marks: list[Markup] = [frame.grid(below)]
    if level is not None:
        _, y = frame.at(0.0, level[0])
        end = frame.left + frame.width
        marks.append(el("line", x1=frame.left, x2=end, y1=y, y2=y, class_="base", stroke_dasharray="5 4"))
        text_y = y + 16 if up.place(level[0]) > 0.5 else y - 6
        marks.append(el("text", level[1], x=frame.left + 8, y=text_y, class_="value"))
    points = [frame.at(*point) for point in curve]
    path = " ".join(f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    marks += [el("path", d=path, class_=f"curve {css}")] if path else []
    for dot in dots:
        x, y = frame.at(dot.x, dot.y)
        circle = el("circle", cx=x, cy=y, r=4.5 if len(dots) <= 40 else 2.0, class_=f"dot {dot.css}")
        name = el("text", dot.label, x=x, y=y - 10, class_="value end") if dot.label else None
        marks.append(el("g", el("title", dot.tip), circle, name))
    return figure(label, marks, width=width, height=height + 44, css="columns" if width == WIDTH else "half")


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Return at least two evenly spaced round numbers that cover [low, high]."""
    span = high - low
    if span <= 0:
        span = abs(high) * 0.1 or 1.0
        low, high = low - span / 2, high + span / 2
    magnitude = 10.0 ** math.floor(math.log10(span / number))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= number)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def groups(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return runs of layers with a common path prefix, as (last part of the prefix, length).

    The prefix is the shortest that gives four runs, unless a longer one gives more than 16.
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


def _bands(names: Sequence[str], slot: float) -> Markup:
    """Return bands below the columns, each labeled with a group of layers."""
    runs = groups(names)
    if len(runs) > len(names) / 2:  # the names have no structure: twelve bands
        step = math.ceil(len(names) / 12)
        runs = [(names[i], min(step, len(names) - i)) for i in range(0, len(names), step)]
    out: list[Markup] = []
    x = LEFT
    for i, (name, length) in enumerate(runs):
        wide = length * slot
        band = el("rect", x=x, y=HEIGHT + 4, width=wide, height=18, class_=f"band b{i % 2}")
        room = int(wide / 7)  # about 7 units per character
        text = None
        if room >= min(3, len(name)) and (len(name) <= room or room >= 6):
            text = el("text", _short(name, room), x=x + wide / 2, y=HEIGHT + 17, class_="tick mid")
        out.append(el("g", el("title", f"{name}: {length} layers"), band, text))
        x += wide
    return join(out)


def _names(names: Sequence[str], slot: float) -> tuple[Markup, float]:
    """Return the labels below the columns, and the depth that they need."""
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
    """Return the end of a path, which says more than its beginning; it is cut at a dot if one is near."""
    if len(name) <= room:
        return name
    end = name[-(room - 1) :]
    _, dot, rest = end.partition(".")
    return "…" + (rest if dot and len(rest) >= room // 2 else end)
