"""Sections as GitHub-flavored Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rankfold._printable import printable
from rankfold.reporting.sections import Column, Content, Section, Text, plain


def draw(shown: Content) -> str:
    """Return content as Markdown text."""
    heading = [f"# {text(shown.title)}"] if shown.title else []
    heading += [f"**{text(shown.lead)}**"] if shown.lead else []
    heading += [text(detail) for detail in shown.details]
    blocks = [*heading, *(block for section in shown.shown for block in _section(section))]
    return "\n\n".join(blocks) + "\n"


def text(value: str) -> str:
    """Return text escaped for a line of Markdown."""
    return re.sub(r"^[>#+-]", r"\\\g<0>", _inline(value))  # otherwise a quotation, heading or list


def code(value: str) -> str:
    """Return text as a code span that is also valid inside a table; backticks are preserved."""
    value = " ".join(printable(value).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if value.startswith("`") or value.endswith("`") else ""
    return f"{fence}{pad}{value}{pad}{fence}"


def _inline(value: str) -> str:
    """Return text escaped for use within a line or a table."""
    line = " ".join(printable(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def _section(section: Section) -> Iterator[str]:
    if section.rows or section.lines or section.notes:
        if section.title:
            yield f"## {text(section.title)}"
        if section.rows:
            yield _table(section)
        if section.lines:
            yield "\n".join(f"- {text(plain(line))}" for line in section.lines)
        yield from (text(plain(note)) for note in section.notes)


def _table(section: Section) -> str:
    columns = section.columns
    titles = [_inline(column.title) for column in columns]
    rule = ["---:" if column.number else "---" for column in columns]
    rows = [[_cell(*pair) for pair in zip(columns, row, strict=True)] for row in section.rows]
    if section.footer:
        first, *rest = map(_inline, section.footer)
        rows.append([f"**{first}**", *rest])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def _cell(column: Column, cell: Text) -> str:
    return code(plain(cell)) if column.mark == "`" else _inline(plain(cell))
