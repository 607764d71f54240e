"""Select layers by name pattern or type."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from rankfold.errors import ConfigError, NoMatchingLayer
from rankfold.inventory.kinds import original_class
from rankfold.inventory.static import Entry
from rankfold.records import enclosing

Selector = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def exclusions(entries: Sequence[Entry], include: Selector, exclude: Selector) -> dict[str, str]:
    """Return the reasons why layers are left out, by layer name.

    Parameters
    ----------
    entries : sequence of Entry
        The layers.
    include, exclude : str, type, list of these, or None
        A shell pattern (``"layer1.*"``) that matches a layer's name, alias or tie, or the path of an enclosing module
        (``"layer1"`` selects all layers in it); a regular expression after ``re:`` that matches the whole name; or a
        module class. The class of an attention and ``nn.Linear`` both select the attention's projections.

    Raises
    ------
    NoMatchingLayer
        If a pattern or type matches no layer.
    ConfigError
        If a pattern is neither string nor class, or its regular expression is malformed.
    """
    reasons: dict[str, str] = {}
    if include is not None:
        items = _as_list(include, "include")
        included = {name for item in items for name in _select(entries, item, "include")}
        reason = f"excluded by include={', '.join(_shown(item) for item in items)}"
        reasons = {e.info.name: reason for e in entries if e.info.name not in included}
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
            raise ConfigError(f"{option} must hold name patterns or module classes. Got {item!r} instead.")
    return items


def _select(entries: Sequence[Entry], item: str | type[nn.Module], option: str) -> list[str]:
    matches = _by_name(item, option) if isinstance(item, str) else _by_type(item)
    selected = [entry.info.name for entry in entries if matches(entry)]
    if not selected:
        names = [entry.info.name for entry in entries]
        near = get_close_matches(item, names, n=3, cutoff=0.4) if isinstance(item, str) else []
        available = ", ".join(repr(name) for name in near or names[:5]) or "none"
        label = "Close matches" if near else "Available layers"
        raise NoMatchingLayer(f"{option} {_shown(item)} matches no layer. {label}: {available}.")
    return selected


def _by_name(pattern: str, option: str) -> Callable[[Entry], bool]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(f"{option} {pattern!r} is not a valid regular expression: {error}.") from error
        return lambda entry: any(expression.fullmatch(name) for name in entry.info.paths)
    return lambda entry: any(fnmatchcase(path, pattern) for name in entry.info.paths for path in enclosing(name))


def _by_type(cls: type[nn.Module]) -> Callable[[Entry], bool]:
    def matches(entry: Entry) -> bool:
        modules = (module for member in entry.members for module in (member.module, member.holder))
        linear = issubclass(nn.Linear, cls) and entry.info.kind == "linear" and not entry.info.input_first
        return linear or any(issubclass(original_class(module), cls) for module in modules)

    return matches


def _shown(item: str | type) -> str:
    return repr(item) if isinstance(item, str) else item.__name__
