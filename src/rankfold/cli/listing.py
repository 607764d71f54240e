"""``rankfold methods`` and ``rankfold strategies``."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from rankfold import methods, strategies
from rankfold._options import PARAMETERS, Flag, documented, without_markup
from rankfold._registry import Entry, Registry
from rankfold.cli._command import Given, command
from rankfold.cli._session import Output
from rankfold.reporting.sections import Content, Section
from rankfold.reporting.terminal import draw

_PARAGRAPHS = re.compile(r"\n\n|\n(?=- |\d+\. )")
"""Ends of paragraphs and of items of a list."""

_NAME = Flag(kind=str | None, names=None, metavar="NAME", help="Show only this one, with its full description.")


@command("rankfold methods svd", "name", name=_NAME)
def list_methods(given: Given, out: Output) -> None:
    """List the factorizations with their options."""
    _list(given, out, "methods", methods.registry)


@command("rankfold strategies compressnas", "name", name=_NAME)
def list_strategies(given: Given, out: Output) -> None:
    """List the rank-selection strategies with their options, which --strategy-option sets."""
    _list(given, out, "strategies", strategies.registry)


def _list(given: Given, out: Output, what: str, registry: Registry[Any]) -> None:
    entries = list(registry) if given.name is None else [registry.entry(given.name)]
    plugins = [_describe(entry) for entry in entries]
    rows = [(p["name"], *map(str, o.values())) for p in plugins for o in p["options"]]
    heads = ("`name", "`option", "type", "default", "help")
    if given.name is None:
        listed = Section(heads=("`name", "summary"), rows=[(p["name"], p["summary"]) for p in plugins])
        shown = Content(sections=[listed, Section(title="Options", heads=heads, rows=rows)])
    else:
        (plugin,) = plugins
        options = Section(title="Options", heads=heads[1:], rows=[row[1:] for row in rows])
        example = ", ".join(f"{o['name']}={o['default']!r}" for o in plugin["options"][:1])
        notes = Section(notes=[f"In Python: rankfold.{plugin['class']}({example})"])
        title = f"{plugin['name']}: {plugin['summary']}"
        shown = Content(title=title, details=plugin["description"], sections=[options, notes])
    if given.quiet:
        out.result("\n".join(p["name"] for p in plugins))
    out.show(lambda console: draw(shown, console))
    out.document({"command": what, what: plugins})


def _describe(entry: Entry[Any]) -> dict[str, Any]:
    """Return the name, summary, description and options of a method or strategy, from its class and docstring."""
    explained, options = documented(entry.plugin), []
    for field in dataclasses.fields(entry.plugin):
        kind, text = explained.get(field.name, (str(field.type), ""))
        missing = field.default is dataclasses.MISSING
        default = field.default_factory() if missing else field.default  # pyright: ignore[reportCallIssue]
        options.append({"name": field.name, "type": kind, "default": default, "help": text})
    text = inspect.cleandoc(entry.plugin.__doc__ or "").partition(PARAMETERS)[0].strip()
    return {
        "name": entry.plugin.name,
        "class": entry.plugin.__name__,
        "summary": entry.summary,
        "description": [without_markup(paragraph) for paragraph in _PARAGRAPHS.split(text)],
        "options": options,
    }
