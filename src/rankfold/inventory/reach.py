"""What a model holds: every container, object and tensor that can be reached from its modules."""

from __future__ import annotations

import enum
import queue
import sys
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type, type(Ellipsis), type(NotImplemented)}
    | {types.FunctionType, types.BuiltinFunctionType, types.MethodType}
)
"""Types of values that hold nothing of the model's."""

# Torch's own attributes in every module: hooks, flags and the three tables.
_OWN = frozenset(vars(nn.Module()))
# An object of these packages is a tool (a logger, an optimizer, a graph), and no state of the model.
_TOOLS = frozenset(sys.stdlib_module_names) - {"types"} | {"torch", "numpy", "rankfold"}  # types: made at run time
_RECORDS = (nn.Module, types.SimpleNamespace, UserDict, UserList, queue.Queue)
_BASES: tuple[type[Any], ...] = (OrderedDict, dict, deque, list, set)


def base_container(value: Any) -> type[Any] | None:
    """Return the built-in class of a mutable container, whose methods no subclass has changed; None if it is none."""
    if not isinstance(value, _BASES):
        return None
    return next(base for base in _BASES if isinstance(value, base))


def is_record(value: Any) -> bool:
    """Whether an object's attributes may hold state of the model: a module, or an instance of the user's class."""
    if isinstance(value, _RECORDS):
        return True
    return type(value).__module__.partition(".")[0] not in _TOOLS and not isinstance(value, type | enum.Enum)


def attributes(value: Any) -> dict[str, Any]:
    """Return the very dict that holds an object's attributes; an empty one if it has none."""
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


def slots(value: Any) -> dict[str, Any]:
    """Return the filled slots of an object, in a new dict."""
    missing, found = object(), dict[str, Any]()
    for cls in type(value).__mro__:
        own = vars(cls).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            stored = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            content = getattr(value, stored, missing)
            if content is not missing and name not in ("__dict__", "__weakref__"):
                found[stored] = content
    return found


def reach(model: nn.Module, *, without: Iterable[nn.Module] = ()) -> Iterator[Any]:
    """Yield the modules of a model, and whatever their attributes hold at any depth, each once; but no parameters.

    Parameters
    ----------
    model : Module
        The model; modules that it holds in lists or objects are found, too.
    without : iterable of Module
        Modules to leave out, with all that only they hold.
    """
    seen: dict[int, Any] = {id(module): module for module in without}  # held, so that no id is used twice
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        children(value, stack.append)


def children(value: Any, found: Callable[[Any], object]) -> None:
    """Call a function with all that a value holds directly, but for atoms."""
    held: Iterable[Any] = ()
    if isinstance(value, torch.jit.ScriptModule):  # it keeps its own elsewhere
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
            found(item)
