"""Options that are little languages: ``--option``, ``--override``, ``--budget``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from rankfold import strategies
from rankfold._documents import parse_json
from rankfold.api import Reconstruct
from rankfold.api.applying import check_reconstruct
from rankfold.candidates import resolve_methods
from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.records import Budget
from rankfold.records.deploy import check_deploy_dtype


def parse_options(texts: Sequence[str] | None, *, flag: str = "--option") -> dict[str, Any]:
    """Return ``{"keep": 0.95}`` for ``["keep=0.95"]``; values are JSON where they can be, else text."""
    out: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} must be KEY=VALUE, such as keep=0.95. Got {text!r} instead.")
        try:
            out[key.strip().replace("-", "_")] = parse_json(value, source=flag)
        except CorruptArtifact:
            out[key.strip().replace("-", "_")] = value
    return out


def parse_overrides(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Return choices by layer name pattern, as `rankfold.plan` takes them."""
    out: dict[str, Any] = {}
    for text in texts or ():
        name, equals, choice = text.partition("=")
        if not equals or not name or not choice:
            raise _bad_override(text)
        out[name] = None if choice == "keep" else _choice(text, choice)
    return out or None


def _choice(text: str, choice: str) -> tuple[str, Any]:
    method, colon, ranks = choice.partition(":")
    if not colon or not method:
        raise _bad_override(text)
    try:
        if ranks.endswith("%"):
            return method, float(ranks[:-1]) / 100
        if "." in ranks:
            return method, float(ranks)
        return method, tuple(int(r) for r in ranks.strip("()").split(","))
    except ValueError:
        raise _bad_override(text) from None


def _bad_override(text: str) -> ConfigError:
    return ConfigError(
        "--override must be NAME=METHOD:RANKS (layer1.*=tucker:8,8), NAME=METHOD:SHARE (fc=svd:0.5) or NAME=keep. "
        f"Got {text!r} instead."
    )


def reconstruction(text: str | None, data: str | None) -> Reconstruct | None:
    """Return what ``--reconstruct`` asks for."""
    if text in ("data", "sequential") and data is None:
        raise ConfigError(f"--reconstruct {text} needs images to look at. Give --data, or --reconstruct weights.")
    check_reconstruct(text, data is not None)
    return cast("Reconstruct | None", text)


def planning_options(
    *,
    budget: list[str] | None,
    strategy: str,
    option: list[str] | None,
    methods: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    keep_first_last: bool,
    override: list[str] | None,
    rank_multiple: int | None,
    gauge: bool,
    storage: str | None = None,
    data_aware: bool,
    cache: str | None = None,
    seed: int,
) -> dict[str, Any]:
    """Return keyword arguments of `rankfold.plan`, checked as far as that goes without a model.

    Raises
    ------
    RankfoldError
        If a name is unknown (the nearest one is offered), or a value cannot be read.
    """
    config = parse_options(option) or None
    strategies.get(strategy, config)
    resolve_methods(methods)
    check_deploy_dtype(storage)
    bounds = None if not budget else Budget(tuple(b for text in budget for b in Budget.parse(text).bounds))
    return {
        "budget": bounds,
        "strategy": strategy,
        "config": config,
        "methods": methods,
        "include": include or None,
        "exclude": exclude or None,
        "keep_first_last": keep_first_last,
        "overrides": parse_overrides(override),
        "rank_multiple": rank_multiple,
        "gauge": gauge,
        "storage": storage,
        "data_aware": data_aware,
        "cache": cache,
        "seed": seed,
    }
