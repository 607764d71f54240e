"""Options that are little languages, and the records that flags make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankfold import strategies
from rankfold._documents import parse_json
from rankfold._options import options_of
from rankfold.api import options as records
from rankfold.cli._command import Given
from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.records import Budget


def parse_options(texts: Sequence[str] | None, *, flag: str = "--strategy-option") -> dict[str, Any]:
    """Return ``{"keep": 0.95}`` for ``["keep=0.95"]``; values are JSON where they can be, else text."""
    result: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} must be KEY=VALUE, such as keep=0.95. Got {text!r} instead.")
        try:
            result[key.strip().replace("-", "_")] = parse_json(value, source=flag)
        except CorruptArtifact:
            result[key.strip().replace("-", "_")] = value
    return result


def parse_budget(texts: Sequence[str] | None) -> Budget | None:
    """Return one budget with the bounds of all texts; None without any."""
    return Budget(tuple(bound for text in texts for bound in Budget.parse(text).bounds)) if texts else None


def search_options(given: Given) -> dict[str, Any]:
    """Return keyword arguments of a search, checked as far as that goes without a model.

    Raises
    ------
    RankfoldError
        If a name is unknown (the nearest one is offered), or a value cannot be read.
    """
    values: dict[str, Any] = {}
    for name, (_, known) in options_of(records.Search).items():
        if known.flag is not None and hasattr(given, name):
            parse = known.flag.parse
            values[name] = getattr(given, name) if parse is None else parse(getattr(given, name))
    chosen = parse_options(getattr(given, "strategy_option", None))
    if chosen:
        values["strategy"] = strategies.get(values["strategy"], chosen)
    search = records.search_of(values)
    if hasattr(given, "data"):
        records.reconstruction(search.reconstruct, has_data=given.data is not None, data_aware=search.data_aware)
    return values
