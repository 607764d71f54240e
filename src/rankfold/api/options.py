"""The options of a search, each defined once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rankfold import methods, strategies, timing
from rankfold._config import Code, changed, is_number, require, spelled
from rankfold._options import SEED, Flag, boolean, check_options, document, integer, option, options_from
from rankfold.calibration import Sequential
from rankfold.candidates import DEFAULT_METHODS, resolve_methods
from rankfold.errors import ConfigError, UnknownNameError
from rankfold.records.deploy import check_deploy_dtype

DEFAULT_STRATEGY = "compressnas"

Reconstruct = Literal["weights", "data", "sequential"]
"""How factors are found."""

_RECONSTRUCT = get_args(Reconstruct)


def chosen_methods(value: Any) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return the names of the factorizations, and the options of those that were given as objects."""
    if value is None or isinstance(value, str):
        return resolve_methods(value), {}
    listed = list(value) if isinstance(value, Iterable) else [value]
    known = all(isinstance(one, str | type | methods.Method) for one in listed)
    require(known, "methods", value, "a name, a method such as rankfold.QR(), or a list of these")
    require(len(listed) > 0, "methods", value, "a list of at least one method")
    objects = {one.name: one for one in (methods.get(one) for one in listed if not isinstance(one, str))}
    options = {name: changed(one) for name, one in objects.items()}
    return resolve_methods([one if isinstance(one, str) else one.name for one in listed]), options


def methods_for(strategy: strategies.Strategy, value: Any) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return the factorizations of a search as `chosen_methods` does; by default those of the strategy.

    Raises
    ------
    ConfigError
        If the strategy cannot use one of them.
    """
    chosen = chosen_methods(value or strategy.default_methods)
    possible = strategy.possible_methods
    useless = [] if possible is None or not value else [name for name in chosen[0] if name not in possible]
    if useless:
        what = f"only factors with {', '.join(map(repr, possible or ()))}" if possible else "factors no layers"
        raise ConfigError(
            f"strategy {strategy.name!r} {what}. Leave out {spelled('methods', ','.join(useless))}, or use another "
            "strategy."
        )
    return chosen


def _strategies() -> list[str]:
    """Return the names of all strategies, the default first."""
    return sorted(strategies.registry.names(), key=lambda name: (name != DEFAULT_STRATEGY, name))


def _strategy(_name: str, value: Any) -> None:
    strategies.get(value)


def _methods(_name: str, value: Any) -> None:
    chosen_methods(value)


def _selector(name: str, value: Any) -> None:
    listed = [value] if isinstance(value, str | type) else value
    good = listed is None or (isinstance(listed, Sequence) and all(isinstance(v, str | type) for v in listed))
    require(good, name, value, "a layer name pattern, a module type, or a list of these")


def _overrides(name: str, value: Any) -> None:
    require(value is None or isinstance(value, Mapping), name, value, "a mapping of layer names")


def _dtype(_name: str, value: Any) -> None:
    check_deploy_dtype(value)


def _cache(name: str, value: Any) -> None:
    require(value is None or (isinstance(value, str | Path) and value != ""), name, value, "a folder, or None")


def _time_limit(name: str, value: Any) -> None:
    require(value is None or (is_number(value) and value > 0), name, value, "a number of seconds above 0, or None")


def _target(_name: str, value: Any) -> None:
    if value is not None:
        timing.registry.entry(timing.Target.of(value).runtime)


def _reconstruct(_name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Sequential) and value not in _RECONSTRUCT:
        raise UnknownNameError("reconstruction", str(value), _RECONSTRUCT)


_PATTERNS = Flag(kind=list[str] | None, metavar="PATTERN", parse=lambda texts: texts or None)


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Options of the search and of the factorization.

    `plan`, `compress` and `sweep` take them by keyword: ``rf.plan(model, x, methods="svd", gauge=True)``. A strategy or
    a factorization is given by name, or by a record of its options: ``strategy=rf.CompressNAS(proxy="fisher")``,
    ``methods=("svd", rf.QR(pivoting=False))``. Layers are selected by name pattern (``"layer1.*"``, ``"re:..."``) or
    module type.
    """

    strategy: Any = option(
        DEFAULT_STRATEGY,
        f"Strategy that selects the method and the ranks of each layer: {', '.join(_strategies())}.",
        check=_strategy,
        flag=Flag(kind=str, names=("--strategy", "-s"), metavar="NAME"),
    )
    methods: Any = option(
        None,
        f"Factorizations to choose from, such as svd,tucker, or all. By default those of the strategy; for most "
        f"strategies {', '.join(DEFAULT_METHODS)}.",
        check=_methods,
        flag=Flag(kind=str | None, metavar="NAMES"),
    )
    data_aware: bool = option(
        True,
        "Use the calibration data for predicted errors and factors (default), or the weights only.",
        check=boolean,
        flag=Flag(kind=bool, names=("--data-aware/--no-data-aware",)),
    )
    reconstruct: Any = option(
        None,
        "What the factors minimize: weights (error of the weights), data (error of each layer's output) or sequential "
        "(error of each layer's output given the compressed layers before it; the most accurate and the slowest). By "
        "default data with calibration data, weights without.",
        check=_reconstruct,
        flag=Flag(kind=str | None, metavar="HOW"),
    )
    include: Any = option(
        None,
        "Name pattern of the layers to compress, such as layer1.*; may be repeated.",
        check=_selector,
        flag=_PATTERNS,
    )
    exclude: Any = option(
        None,
        "Name pattern of layers that are not compressed; may be repeated.",
        check=_selector,
        flag=_PATTERNS,
    )
    keep_first_last: bool = option(
        False, "Do not compress the first convolution and the last layer.", check=boolean, flag=Flag(kind=bool)
    )
    overrides: Mapping[str, Any] | None = option(
        None,
        "Fixed choice for the layers that a name or pattern matches: NAME=METHOD:RANKS, NAME=METHOD:SHARE (a share of "
        "the layer's parameters, such as 0.5) or NAME=keep. It counts towards the budget; may be repeated.",
        check=_overrides,
        flag=Flag(
            kind=list[str] | None, names=("--override",), metavar="CHOICE", parse=lambda texts: parse_overrides(texts)
        ),
    )
    rank_multiple: int | None = option(
        None,
        "Round ranks to multiples of this number, except full ranks and explicit ones. By default 8 for a model on an "
        "accelerator, otherwise 1.",
        check=integer(1, optional=True),
        flag=Flag(kind=int | None),
    )
    gauge: bool = option(
        False,
        "Remove redundant parameters where possible: r^2 fewer between two factors of rank r. The layer computes the "
        "same function.",
        check=boolean,
        flag=Flag(kind=bool),
    )
    deploy_dtype: str | None = option(
        None,
        "Data type of weights and activations on the device, for bounds on flash and ram: float32, float16, bfloat16 "
        "or int8. By default the model's own. Nothing is converted.",
        check=_dtype,
        flag=Flag(kind=str | None, metavar="TYPE"),
    )
    target: Any = option(
        None,
        f"Where latency is measured: {', '.join(timing.registry.names())}, with settings such as 'onnxruntime, "
        "batch=32, threads=1, dtype=float16, device=cuda'. By default torch if the budget bounds latency. Settings "
        "that are left out are those of the model, the example input and torch.",
        check=_target,
        flag=Flag(kind=str | None, metavar="RUNTIME"),
    )
    never_slower: bool = option(
        True,
        "With a target, reject candidates that are not faster than their layer there, and models that are slower than "
        "the original.",
        check=boolean,
        flag=Flag(kind=bool, names=("--never-slower/--may-be-slower",)),
    )
    cache: str | Path | None = option(
        None,
        "Folder for measurements: an interrupted search resumes from it, and a search with another budget measures "
        "only what is missing. Measurements on data that cannot be hashed are not cached.",
        check=_cache,
        flag=Flag(kind=str | None, metavar="FOLDER"),
    )
    time_limit: float | None = option(
        300.0,
        "Seconds that the search may take, by a forecast from a few timed passes. compressnas chooses proxy, "
        "samples, points and the samples of the second moments accordingly, unless they are given, and records them in "
        "the plan. None (0 on the command line) sets no limit.",
        check=_time_limit,
        flag=Flag(kind=float, metavar="SECONDS", parse=lambda seconds: seconds or None),
    )
    seed: int = option(0, "Random seed.", check=SEED, flag=Flag(kind=int))

    def __post_init__(self) -> None:
        check_options(self)


def search_of(options: Mapping[str, Any]) -> Search:
    """Return the options of a call from its keyword arguments; invalid ones raise.

    ``config``, the former name for the options of a strategy that is given by name, is accepted with a warning.
    """
    options = dict(options)
    if (config := options.pop("config", None)) is not None:
        options["strategy"] = strategies.get(options.get("strategy", DEFAULT_STRATEGY), config)
        named = type(options["strategy"]).__name__
        warnings.warn(
            f"config is deprecated: pass the options with the strategy, {spelled('strategy', Code(f'{named}(...)'))}.",
            DeprecationWarning,
            stacklevel=3,
        )
    return options_from(Search, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How factors are found: the mode, and the options of the mode "sequential"."""

    mode: Reconstruct
    sequential: Sequential = field(default_factory=Sequential)


def reconstruction(wanted: Any, *, has_data: bool, data_aware: bool = True) -> Fitting:
    """Return how factors are found: by default on the data, if there is any and it is to be used.

    Raises
    ------
    ConfigError
        If the mode needs calibration data and there is none.
    """
    _reconstruct("reconstruct", wanted)
    if wanted is None:
        return Fitting(mode="data" if has_data and data_aware else "weights")
    options = wanted if isinstance(wanted, Sequential) else Sequential()
    mode: Reconstruct = "sequential" if isinstance(wanted, Sequential) else wanted
    if mode != "weights" and not has_data:
        raise ConfigError(
            f"{spelled('reconstruct', mode)} needs calibration data. Pass {spelled('calibration', ...)}, or "
            f"{spelled('reconstruct', 'weights')}."
        )
    return Fitting(mode=mode, sequential=options)


def parse_overrides(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Return choices by layer name pattern for texts such as ``"layer1.*=tucker:8,8"``."""
    result: dict[str, Any] = {}
    for text in texts or ():
        name, equals, choice = text.partition("=")
        if not equals or not name or not choice:
            raise _bad_override(text)
        result[name] = None if choice == "keep" else _choice(text, choice)
    return result or None


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
