"""HTML and SVG elements that escape all text except markup, and write control characters visibly."""

from __future__ import annotations

import html
from collections.abc import Iterable

from rankfold._printable import printable


class Markup(str):
    """Text that is HTML; all other text is escaped when it becomes part of an element."""

    __slots__ = ()


Child = str | Iterable["str | None"] | None
_VOID = {"meta", "br", "wbr", "rect", "line", "path", "circle", "img"}


def el(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """Return one element.

    Children that are not `Markup` are escaped; None is omitted. In the name of an attribute, a trailing underscore is
    dropped (``class_``) and any other becomes a hyphen (``aria_label``); numbers have at most two decimals.
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
    """Return the concatenated children; those that are not `Markup` are escaped."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(child if isinstance(child, Markup) else html.escape(printable(child)))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))
