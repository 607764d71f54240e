"""Traverse a model: every container, object and tensor that can be reached from its modules."""

from __future__ import annotations

import enum
import queue
import sys
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type, type(Ellipsis), type(NotImplemented)}
    | {types.FunctionType, types.BuiltinFunctionType, types.MethodType}
)
"""Types whose values hold no state of the model."""

# Torch's own attributes of every module: hooks, flags and the three tables.
_OWN = frozenset(vars(nn.Module()))
# Objects of these packages are tools (loggers, optimizers, graphs), not state. Classes created at run time belong to
# `types`.
_TOOLS = frozenset(sys.stdlib_module_names) - {"types"} | {"torch", "numpy", "rankfold"}
_RECORDS = (nn.Module, types.SimpleNamespace, UserDict, UserList, queue.Queue)
_BASES: tuple[type[Any], ...] = (OrderedDict, dict, deque, list, set)


def base_container(value: Any) -> type[Any] | None:
    """Return the built-in class of a mutable container, to bypass the methods of subclasses; None for others."""
    return next((base for base in _BASES if isinstance(value, base)), None)


def is_record(value: Any) -> bool:
    """Whether an object's attributes may hold state of the model: a module, or an instance of a user's class."""
    if isinstance(value, _RECORDS):
        return True
    return type(value).__module__.partition(".")[0] not in _TOOLS and not isinstance(value, type | enum.Enum)


def attributes(value: Any) -> dict[str, Any]:
    """Return the dict in which an object stores its attributes, not a copy; an empty one if it has none."""
    own = getattr(value, "__dict__", None)
    return own if isinstance(own, dict) else {}


def slots(value: Any) -> dict[str, Any]:
    """Return the filled slots of an object by the name under which they are stored."""
    missing, filled = object(), dict[str, Any]()
    for cls in type(value).__mro__:
        own = vars(cls).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            stored = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            content = getattr(value, stored, missing)
            if content is not missing and name not in ("__dict__", "__weakref__"):
                filled[stored] = content
    return filled


def reach(model: nn.Module, *, without: Iterable[nn.Module] = ()) -> Iterator[Any]:
    """Yield once every module of a model and every object that their attributes hold at any depth, except parameters.

    The modules `without` and the objects that only they hold are left out.
    """
    seen: dict[int, Any] = {id(module): module for module in without}  # held, so that no id is reused
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        stack.extend(_children(value))


def _children(value: Any) -> Iterator[Any]:
    """Yield the values that a value holds directly, except atoms and parameters."""
    held: Iterable[Any] = ()
    if isinstance(value, torch.jit.ScriptModule):  # its attributes are not in its __dict__
        held = value.buffers()
    elif isinstance(value, nn.Module):
        table = vars(value)
        held = (*value._modules.values(), *value._buffers.values(), *(table[n] for n in table if n not in _OWN))
    elif isinstance(value, Tensor):
        held = vars(value).values()
    elif isinstance(value, dict):
        held = (*value.values(), *attributes(value).values())
    elif isinstance(value, tuple | list | deque | set | frozenset):
        held = (*value, *attributes(value).values())
    elif is_record(value):
        held = (*attributes(value).values(), *slots(value).values())
    for item in held:
        if type(item) not in ATOMS and not (isinstance(item, Tensor) and isinstance(item, nn.Parameter)):
            yield item
