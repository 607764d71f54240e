"""Formatting of amounts and lists in reports and messages."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count(n: float) -> str:
    """Return a whole number with thousands separators: ``1,180,160``."""
    return f"{n:,.0f}"


def size(n: float) -> str:
    """Return bytes in binary units: ``1.06 MiB``."""
    for suffix, unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(n) >= unit:
            return f"{three_digits(n / unit)} {suffix}"
    return f"{n:.0f} B"


def elapsed(ns: float) -> str:
    """Return a time given in nanoseconds: ``4.20 ms``."""
    return f"{three_digits(ns / 1e6)} ms"


def three_digits(x: float) -> str:
    """Return three significant digits, never in exponent form. Trailing zeros are kept, so that columns align."""
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(x)) + 1e-12))
    text = f"{x:.{decimals}f}"
    digits = len(text.lstrip("-0.").replace(".", ""))
    # 9.996 is rounded to 10.00, which has one digit too many.
    return f"{x:.{decimals - 1}f}" if decimals and digits > 3 else text


def either(names: Sequence[str]) -> str:
    """Return names as alternatives: ``params, macs or flash``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
