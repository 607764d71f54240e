"""Conversion of frozen records to JSON-ready values and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rankfold.errors import CorruptArtifact
from rankfold.records import Plan

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON cannot express them
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
}


def encode(value: Any) -> Any:
    """Return a record, or any value of a record, as JSON-ready values; plans keep the format of `Plan.save`."""
    if isinstance(value, Plan):
        return json.loads(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def decode(wanted: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type `wanted`; `where` is the path of the value, for messages.

    `wanted` is a dataclass, ``int``, ``float``, ``str``, ``bool``, ``None``, ``Any``, a literal of strings, or a tuple,
    mapping or union of these.

    Raises
    ------
    CorruptArtifact
        If the value has another type or lacks a field.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return decode(next(a for a in arguments if a is not types.NoneType), value, where)
    if wanted is Plan:
        return Plan.from_json(json.dumps(value), source=where)
    if origin is Literal:
        _require(value in arguments, where, f"one of {', '.join(arguments)}", value)
        return value
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _decode_record(wanted, value, where)
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), where, "an object", value)
        return {k: decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if wanted is float and isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    kinds, what = _PLAIN[wanted]
    _require(isinstance(value, kinds) and isinstance(value, bool) == (wanted is bool), where, what, value)
    return float(value) if wanted is float else value


def _decode_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _require(isinstance(value, list), where, "a list", value)
    if arguments[-1] is Ellipsis:
        return tuple(decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    _require(len(value) == len(arguments), where, f"a list of {len(arguments)}", value)
    pairs = zip(arguments, value, strict=True)
    return tuple(decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(pairs))


def _decode_record(wanted: type, value: Any, where: str) -> Any:
    """Return a record; unknown keys are ignored, because a later version may add fields."""
    _require(isinstance(value, Mapping), where, "an object", value)
    hints = get_type_hints(wanted)
    out: dict[str, Any] = {}
    for f in dataclasses.fields(wanted):
        if f.name in value:
            out[f.name] = decode(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise CorruptArtifact(f"{where} has no {f.name!r}. It may be edited or truncated; restore or recreate it.")
    return wanted(**out)


def _require(condition: bool, where: str, wanted: str, value: Any) -> None:
    if not condition:
        text = repr(value)
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise CorruptArtifact(f"{where} must be {wanted}. Got {shown} instead.")
