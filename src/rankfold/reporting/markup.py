"""HTML and SVG elements that escape whatever is not markup already, and write control characters out."""

from __future__ import annotations

import html
from collections.abc import Iterable

from rankfold._printable import printable


class Markup(str):
    """Text that is HTML; every other text is escaped before it gets into an element."""

    __slots__ = ()


Child = str | Iterable["str | None"] | None
_VOID = {"meta", "br", "wbr", "rect", "line", "path", "circle"}


def el(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """Return one element.

    Parameters
    ----------
    tag : str
        The element's name.
    *children : Markup, str, iterable of these, or None
        Text that is no `Markup` is escaped; None is left out.
    **attributes : str, float or None
        Escaped; a trailing underscore is dropped (``class_``), any other becomes a hyphen
        (``aria_label``); numbers are written with two decimals at most; None is left out.
    """
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(shown))}"')
    parts.append(">")
    if tag in _VOID:
        return Markup("".join(parts)[:-1] + "/>")
    return Markup("".join(parts) + join(*children) + f"</{tag}>")


def join(*children: Child) -> Markup:
    """Return the children one after the other, escaped where they are no markup."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(child if isinstance(child, Markup) else html.escape(printable(child)))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))
