"""Choosing layers by name pattern or type."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from rankfold.errors import ConfigError, NoMatchingLayer
from rankfold.inventory.kinds import original_class
from rankfold.inventory.static import Entry

Selector = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def exclusions(entries: Sequence[Entry], include: Selector, exclude: Selector) -> dict[str, str]:
    """Return why layers are left out, by name.

    Parameters
    ----------
    entries : sequence of Entry
        The decisions.
    include, exclude : str, type, list of these, or None
        A shell pattern (``"layer1.*"``), which selects a layer by its name, an alias, a tie, or the
        path of a module around it (``"layer1"`` selects all inside); a regular expression after
        ``re:``, which has to match the whole name; or a module class. An attention's projections
        answer to the attention's class and to ``nn.Linear``.

    Raises
    ------
    NoMatchingLayer
        If a pattern or type selects no layer.
    ConfigError
        If a pattern is neither string nor class, or its regular expression is malformed.
    """
    reasons: dict[str, str] = {}
    if include is not None:
        wanted = _as_list(include, "include")
        chosen = {name for item in wanted for name in _select(entries, item, "include")}
        reason = f"excluded by include={', '.join(_shown(item) for item in wanted)}"
        reasons = {e.info.name: reason for e in entries if e.info.name not in chosen}
    for item in _as_list(exclude, "exclude"):
        for name in _select(entries, item, "exclude"):
            reasons.setdefault(name, f"excluded by {_shown(item)}")
    return reasons


def _as_list(selector: Selector, option: str) -> list[str | type[nn.Module]]:
    if selector is None:
        return []
    items = [selector] if isinstance(selector, str) or not isinstance(selector, Sequence) else [*selector]
    for item in items:
        if not isinstance(item, str | type):
            raise ConfigError(f"{option} takes name patterns and module classes. Got {item!r} instead.")
    return items


def _select(entries: Sequence[Entry], item: str | type[nn.Module], option: str) -> list[str]:
    matches = _by_name(item, option) if isinstance(item, str) else _by_type(item)
    found = [entry.info.name for entry in entries if matches(entry)]
    if not found:
        names = [entry.info.name for entry in entries]
        near = get_close_matches(item, names, n=3, cutoff=0.4) if isinstance(item, str) else []
        some = ", ".join(repr(name) for name in near or names[:5]) or "none at all"
        raise NoMatchingLayer(f"{option} {_shown(item)} selects no layer; there are {some}.")
    return found


def _by_name(pattern: str, option: str) -> Callable[[Entry], bool]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(f"{option} {pattern!r} is no regular expression: {error}.") from error
        return lambda entry: any(expression.fullmatch(name) for name in _names(entry))
    return lambda entry: any(fnmatchcase(path, pattern) for name in _names(entry) for path in _around(name))


def _by_type(cls: type[nn.Module]) -> Callable[[Entry], bool]:
    def matches(entry: Entry) -> bool:
        return any(
            issubclass(original_class(module), cls)
            for member in entry.members
            for module in (member.module, member.holder)
        ) or (issubclass(nn.Linear, cls) and entry.info.kind == "linear" and not entry.info.input_first)

    return matches


def _names(entry: Entry) -> tuple[str, ...]:
    return (entry.info.name, *entry.info.aliases, *entry.info.ties)


def _around(name: str) -> list[str]:
    """Return the name and the paths of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _shown(item: str | type) -> str:
    return repr(item) if isinstance(item, str) else item.__name__
