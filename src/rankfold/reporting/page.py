"""An HTML document that needs nothing else, and what its pages are made of: sections and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from rankfold.reporting.markup import Child, Markup, el


def page(title: str, *children: Child) -> str:
    """Return a document with the report's style sheet: no network, no script, no font."""
    style = (files("rankfold.reporting") / "style.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(style)),
    )
    document = el("html", head, el("body", el("main", *children)), lang="en")
    return f"<!doctype html>\n{document}\n"


def section(title: str, *children: Markup | Iterable[Markup | None] | None) -> Markup:
    """Return a section under a heading."""
    return el("section", el("h2", title), *children)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    tall: bool = False,
    top: Markup | None = None,
    css: str = "",
) -> Markup:
    """Return a table; a title that starts with ``>`` is of numbers, and a tall table scrolls under its head."""
    align = ["num" if head.startswith(">") else None for head in heads]
    titles = [el("th", head.removeprefix(">"), class_=a, scope="col") for head, a in zip(heads, align, strict=True)]
    body: list[Markup] = []
    for row in rows:
        first = el("th", row[0], class_=align[0], scope="row")
        rest = [el("td", c, class_=a) for c, a in zip(row[1:], align[1:], strict=True)]
        body.append(el("tr", first, rest))
    grid = el("table", el("thead", top, el("tr", titles)), el("tbody", body), class_=css or None)
    return el("div", grid, class_="scroll tall" if tall else "scroll", tabindex="0")
