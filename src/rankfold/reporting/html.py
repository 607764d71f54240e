"""Sections as a self-contained HTML document: no network, scripts or fonts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby

from rankfold.reporting.markup import Markup, el, join
from rankfold.reporting.sections import Cell, Column, Content, Section, Text, Tile, plain

TALL = 30
"""A table with more rows scrolls below its header."""


def draw(shown: Content) -> str:
    """Return content as an HTML document."""
    style = (files("rankfold.reporting") / "style.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{shown.title} · {shown.kind}"),
        el("style", Markup(style)),
    )
    header = el(
        "header",
        el("p", shown.kind, class_="eyebrow"),
        el("h1", shown.title),
        el("p", shown.lead, class_="lead") if shown.lead else None,
        [el("p", detail, class_="muted") for detail in shown.details],
    )
    tiles = el("section", map(_tile, shown.tiles), class_="tiles", aria_label="At a glance") if shown.tiles else None
    body: list[Markup] = []
    for narrow, run in groupby(shown.shown, lambda section: section.narrow):
        drawn = [_section(section) for section in run]
        body += [el("div", drawn, class_="two")] if narrow else drawn
    document = el("html", head, el("body", el("main", header, tiles, body)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _section(section: Section) -> Markup:
    return el(
        "section",
        el("h2", section.title) if section.title else None,
        section.figures,
        _table(section) if section.rows else None,
        el("ul", [el("li", _text(line)) for line in section.lines]) if section.lines else None,
        [el("p", _text(note), class_="small") for note in section.notes],
    )


def _table(section: Section) -> Markup:
    columns = section.columns
    titles = [
        el("th", column.title, class_="num" if column.number else None, scope="col")
        for column in columns
        if column.mark != "+"
    ]
    rows = [*section.rows, *([section.footer] if section.footer else [])]
    grid = el("table", el("thead", el("tr", titles)), el("tbody", [_row(columns, row) for row in rows]))
    return el("div", grid, class_="scroll tall" if len(rows) > TALL else "scroll", tabindex="0")


def _row(columns: Sequence[Column], row: Sequence[Text]) -> Markup:
    cells: list[Markup] = []
    for i, (column, text) in enumerate(zip(columns, row, strict=True)):
        if column.mark == "+":
            continue
        below = row[i + 1] if columns[i + 1 : i + 2] and columns[i + 1].mark == "+" else ""
        cells.append(
            el(
                "td" if i else "th",
                _cell(column, text),
                el("span", _text(below), class_="sub") if plain(below) else None,
                class_="num" if column.number else None,
                scope=None if i else "row",
            )
        )
    return el("tr", cells)


def _cell(column: Column, text: Text) -> Markup:
    if column.mark == "`":  # a long path may break after a dot
        return el("code", Markup(el("wbr").join(join(part) for part in re.split(r"(?<=\.)", plain(text)))))
    return _text(text, re.sub(r"^-(?=\d)", "\N{MINUS SIGN}", plain(text)) if column.number else None)


def _text(text: Text, shown: str | None = None) -> Markup:
    words = join(plain(text) if shown is None else shown)
    if not isinstance(text, Cell):
        return words
    bar = None if text.share is None else f"--left:{100 * min(1.0, text.share):.1f}%"
    kinds = " ".join(filter(None, (text.tone, "left" if bar else "")))
    return el("span", words, class_=kinds or None, style=bar)


def _tile(tile: Tile) -> Markup:
    width = None if tile.share is None else f"width:{100 * min(1.0, tile.share):.1f}%"
    details = [join(el("br") if i else None, _text(detail)) for i, detail in enumerate(tile.details)]
    return el(
        "div",
        el("p", tile.name, class_="name"),
        el("p", tile.value, el("small", f" {tile.unit}") if tile.unit else None, class_="big"),
        el("div", el("i", style=width), class_="meter") if width else None,
        el("p", details, class_="detail"),
        class_=f"tile {tile.tone}".strip(),
    )
