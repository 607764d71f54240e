"""Identity of a metric, so that values of another metric are not taken from a cache."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from rankfold._hashing import content_hash, module_hash
from rankfold.inventory import evaluating

DEEPEST = 4
"""How far objects are followed."""


def identity(value: Any, depth: int = 0) -> Any:
    """Return a value that changes with what a metric computes, ready for JSON; None for what is not visible.

    Visible are numbers, text, tensors and arrays, modules, DataLoaders (all of their batches), the code of functions
    with their closures, and the attributes of objects.
    """
    if depth > DEEPEST:
        return None
    if isinstance(value, nn.Module):
        return module_hash(value)
    if isinstance(value, DataLoader):
        return batches_identity(value)
    if isinstance(value, functools.partial):
        return [identity(part, depth + 1) for part in (value.func, *value.args, *value.keywords.items())]
    if isinstance(value, types.MethodType):
        return [identity(value.__func__, depth + 1), identity(value.__self__, depth + 1)]
    if isinstance(value, types.FunctionType):
        return [value.__qualname__, _code(value.__code__), *_surroundings(value, depth)]
    seen = content_hash(value)
    if seen is not None or isinstance(value, type | Mapping | list):
        return seen
    if isinstance(value, tuple):
        return [identity(item, depth + 1) for item in value]
    found = {name: identity(item, depth + 1) for name, item in _attributes(value).items()}
    return {name: item for name, item in found.items() if item is not None} or None


def metric_identity(metric: Any) -> Any:
    """Return the identity of a metric without its ``loader``, whose batches `rankfold.candidates` hashes."""
    if getattr(metric, "loader", None) is None:
        return identity(metric)
    parts = {name: identity(item, 1) for name, item in _attributes(metric).items() if name not in ("loader", "samples")}
    return [type(metric).__qualname__, parts]


def batches_identity(batches: Iterable[Any]) -> str | None:
    """Return a hash of all batches of a loader; torch's random state stays as it is."""
    with evaluating(nn.Module()):
        return content_hash([content_hash(batch) for batch in batches])


def _surroundings(function: types.FunctionType, depth: int) -> list[Any]:
    """Return what a function computes with: defaults, closure, and the globals that its code names."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    values = [item for item in named if not isinstance(item, types.ModuleType | types.BuiltinFunctionType)]
    parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells, *values]
    return [identity(part, depth + 1) for part in parts]


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {**{n: getattr(value, n, None) for n in slots}, **getattr(value, "__dict__", {})}
