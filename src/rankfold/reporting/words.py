"""Numbers as text: the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable

from rankfold.records.amounts import count as count
from rankfold.records.amounts import size as size
from rankfold.records.amounts import three_digits
from rankfold.reporting.record import MetricValue

Show = Callable[[float], str]
"""Formats one kind of number."""

NONE = "–"
"""Stands for a missing number."""


def at_least(amount: str) -> str:
    """Return a lower bound as text."""
    return f"≥ {amount}"


def bound(text: str) -> str:
    """Return a bound of a budget in typeset form: ``params ≤ 25 %``."""
    return text.replace("<=", " ≤ ").replace("%", " %")


def compact(n: float) -> str:
    """Return a number with three significant digits and a decimal suffix: ``1.18M``."""
    for suffix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(n) >= factor * 0.9995:
            return three_digits(n / factor) + suffix
    return f"{n:.0f}" if n == int(n) else three_digits(n)


def tick(n: float) -> str:
    """Return a round number of an axis without trailing zeros: ``2.5M``."""
    text = compact(n)
    digits = text.rstrip("kMGT")
    bare = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return bare + text[len(digits) :]


def milliseconds(ms: float) -> str:
    """Return a duration given in milliseconds: ``12.3 ms``."""
    return f"{three_digits(ms)} ms"


def seconds(s: float | None) -> str:
    """Return a duration given in seconds: ``4.2 s``, ``75 s``, ``12 min 05 s``."""
    if s is None:
        return NONE
    if s < 100:
        return f"{s:.2g} s" if s < 10 else f"{s:.0f} s"
    hours, rest = divmod(round(s), 3600)
    if hours:
        return f"{hours} h {rest // 60:02d} min"
    return f"{rest // 60} min {rest % 60:02d} s"


def percent(share: float) -> str:
    """Return a share 0..1 as a percentage: ``75 %``, ``72.3 %``; ``100 %`` only for the whole."""
    if not math.isfinite(share):
        return NONE
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f}".removesuffix(".0") + " %"


def ratio(before: float, after: float) -> str:
    """Return the compression ratio, original over compressed: ``4.0x``."""
    if after <= 0 or not math.isfinite(before / after):
        return NONE
    value = before / after
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def reduction(before: float, after: float) -> str:
    """Return one minus compressed over original: ``75 %``; an increase is ``12 % more``."""
    if before <= 0:
        return NONE
    saved = 1 - after / before
    return percent(saved) if saved >= 0 else f"{percent(-saved)} more"


def rate(value: float | None) -> str:
    """Return a learning rate: ``0.05``, ``0.000125``."""
    return NONE if value is None else f"{value:.3g}"


def error(value: float | None) -> str:
    """Return a relative error, 0..1, with three decimals."""
    if value is None or not math.isfinite(value):
        return NONE
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def number(value: float | None) -> str:
    """Return a number with four significant digits."""
    return NONE if value is None else f"{value:#.4g}".removesuffix(".")


def metric(of: MetricValue, value: float | None) -> str:
    """Return a value of a metric, fractions as a percentage: ``91.73 %``."""
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" if of.in_percent else number(value)


def metric_change(of: MetricValue) -> str:
    """Return final minus dense with its sign, fractions in points: ``-0.53 points``."""
    if of.change is None:
        return NONE
    if not of.in_percent:
        return f"{of.change:+.4g}"
    text = f"{100 * of.change:+.2f}"
    return f"{'0.00' if text in ('-0.00', '+0.00') else text} points"


def ranks(values: tuple[int, ...]) -> str:
    """Return ranks in their usual notation: ``(64, 32)``; a single rank without parentheses."""
    return str(values[0]) if len(values) == 1 else f"({', '.join(map(str, values))})"
