"""Find references to layers outside of module children: in lists, tuples, dicts, objects, partials and functions."""

from __future__ import annotations

import contextlib
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.inventory.reach import ATOMS, attributes, slots
from rankfold.inventory.sharing import storage_pointer

MOST = 300_000
"""Number of objects that are visited at most; references beyond are left to `Proof`."""

_DEPTH = 8
_ATOMS = (ATOMS - {types.FunctionType, types.MethodType}) | {
    bytearray, property, types.ModuleType, types.CodeType, types.GeneratorType,
    Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator,
}  # fmt: skip
_SKIPPED = frozenset({"training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_compiled_call_impl"})
_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))

_PROXIES = weakref.ProxyTypes
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_SHUT = (
    types.FunctionType, types.MappingProxyType, weakref.WeakValueDictionary, weakref.WeakKeyDictionary, weakref.WeakSet
)  # fmt: skip

_Where = tuple[Any, str] | None


class HeldTensor(str):
    """A tensor of a replaced layer that is held outside of the modules' parameters, with the place as text."""

    __slots__ = ("tensor",)

    def __new__(cls, label: str, tensor: Tensor) -> HeldTensor:
        """Return the label with the tensor."""
        held = super().__new__(cls, label)
        held.tensor = tensor
        return held


class References:
    """References of a model's objects to modules that will be replaced.

    All objects that can be reached from the attributes of the model's modules are visited. References in mutable
    containers and attributes can be changed (`change`). Those of functions (closure, default, global name) and weak
    references cannot, and are listed in `fixed`. Tensors of the modules are listed in `tensors`, because only a run can
    show whether the model uses them.

    Parameters
    ----------
    model : nn.Module
        The model.
    new : mapping of Module to Module
        The replacements.
    foreign : iterable of Module
        Modules of the original, if `model` is a copy. A deep copy shares functions and weak references with the
        original, so they hold modules of the original.
    """

    def __init__(self, model: nn.Module, new: Mapping[nn.Module, nn.Module], foreign: Iterable[nn.Module] = ()) -> None:
        self.fixed: list[str] = []
        self.tensors: list[HeldTensor] = []
        self._new = new
        weights = [parameter for module in new for parameter in module.parameters()]
        self._weights = {id(parameter) for parameter in weights}
        self._memory = {storage_pointer(parameter) for parameter in weights} - {0}
        self._own = {id(module) for module in model.modules()}
        self._foreign = {id(module) for module in foreign} - self._own
        self._edits: list[Callable[[], object]] = []
        self._seen: dict[int, object] = {}
        self._open: list[tuple[Any, _Where]] = []
        self._shut: list[tuple[Any, _Where, int]] = []
        self._shut_seen: dict[int, object] = {}
        classes: dict[type, _Where] = {}
        for path, module in model.named_modules():
            where = (None, f"module {path!r}" if path else "the model")
            self._push(module, where)
            classes.setdefault(type(module), where)
        for cls, where in classes.items():
            self._class(cls, where)
        while self._open and len(self._seen) < MOST:
            self._visit(*self._open.pop())
        while self._shut and len(self._shut_seen) < MOST:
            self._visit_shut(*self._shut.pop())

    def change(self) -> None:
        """Replace the old modules by the new ones."""
        for edit in self._edits:
            edit()

    # References that can be changed.

    def _push(self, value: Any, where: _Where) -> None:
        if type(value) not in _ATOMS and id(value) not in self._seen and not isinstance(value, Tensor | type):
            self._seen[id(value)] = value  # held, so that no id is reused
            self._open.append((value, where))

    def _visit(self, value: Any, where: _Where) -> None:
        if isinstance(value, torch.jit.ScriptModule):
            return
        match value:
            case dict():
                self._mapping(value, where)
            case list() | deque():
                self._items(enumerate(value), value.__setitem__, where)
            case set():
                self._set(value, where)
            case partial():
                self._partial(value, where)
            case np.ndarray():
                if value.dtype == object:
                    self._items(enumerate(value.flat), value.flat.__setitem__, where)
                return
            case _:
                pass
        own = attributes(value)
        held = own.items()
        if isinstance(value, nn.Module):
            for table in [v for k, v in held if k in _HOOKS and v and id(v) not in self._seen]:
                self._hooks(table, where)
            held = [(k, v) for k, v in held if k not in _SKIPPED and k not in _HOOKS]
        self._items(held, own.__setitem__, where, "attribute ")
        self._items(slots(value).items(), partial(object.__setattr__, value), where, "attribute ")

    def _items(
        self, items: Iterable[tuple[Any, Any]], put: Callable[[Any, Any], object], where: _Where, kind: str = "item "
    ) -> None:
        for key, value in items:
            if type(value) not in _ATOMS or isinstance(value, Tensor):
                new = self._replaced(value, (where, f"{kind}{key!r}"))
                if new is not value:
                    self._edits.append(partial(put, key, new))

    def _mapping(self, value: dict[Any, Any], where: _Where) -> None:
        self._items(value.items(), value.__setitem__, where)
        keys = {key: self._replaced(key, (where, "a key")) for key in value if type(key) not in _ATOMS}
        if any(new is not key for key, new in keys.items()):

            def rename() -> None:
                items = [(keys.get(key, key), held) for key, held in value.items()]
                value.clear()
                value.update(items)

            self._edits.append(rename)

    def _set(self, value: set[Any], where: _Where) -> None:
        for item in value:
            new = self._replaced(item, (where, "a member"))
            if new is not item:
                self._edits += [partial(value.discard, item), partial(value.add, new)]

    def _partial(self, value: partial[Any], where: _Where) -> None:
        parts = (value.func, value.args, value.keywords)
        new = [self._replaced(part, (where, "partial")) for part in parts[:2]]
        self._push(value.keywords, (where, "partial"))
        if new[0] is not parts[0] or new[1] is not parts[1]:
            self._edits.append(lambda: value.__setstate__((*new, value.keywords, vars(value))))  # pyright: ignore[reportAttributeAccessIssue]

    def _hooks(self, table: Mapping[Any, Any], where: _Where) -> None:
        """Visit hooks except functions, which often refer to the model without running it."""
        self._seen[id(table)] = table
        for hook in table.values():
            if not isinstance(hook, types.FunctionType):
                self._replaced(hook, (where, "hook"))

    def _replaced(self, value: Any, where: _Where) -> Any:
        """Return the replacement of a value: the value itself if nothing in it is replaced."""
        if isinstance(value, Tensor):
            if storage_pointer(value) in self._memory:
                self.tensors.append(HeldTensor(_text(where), value))
            return value
        if type(value) in _PROXIES:
            self._close(value, where)
            return value
        if isinstance(value, nn.Module):
            if value in self._new:
                return self._new[value]
            if id(value) not in self._own and self._is_twin(value):
                self._refuse(value, where)
                return value
        elif isinstance(value, tuple):
            return self._rebuilt(value, where)
        elif isinstance(value, frozenset):
            items = {item: self._replaced(item, (where, "a member")) for item in value}
            return value if all(k is v for k, v in items.items()) else type(value)(items.values())
        elif isinstance(value, types.MethodType):
            return self._method(value, where)
        elif isinstance(value, weakref.ref):
            return self._weak(value, where)
        elif isinstance(value, _SHUT):
            self._close(value, where)
            return value
        elif type(value) not in _ATOMS and "__wrapped__" in getattr(value, "__dict__", {}):
            self._close(value.__wrapped__, where)
        self._push(value, where)
        return value

    def _rebuilt(self, value: tuple[Any, ...], where: _Where) -> tuple[Any, ...]:
        items = [self._replaced(item, (where, f"item {i}")) for i, item in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)._make(items) if hasattr(type(value), "_make") else type(value)(items)  # pyright: ignore[reportAttributeAccessIssue]

    def _method(self, value: types.MethodType, where: _Where) -> Any:
        holder, name = value.__self__, value.__func__.__name__
        if not isinstance(holder, nn.Module) or holder not in self._new:
            self._push(holder, where)
            self._close(value.__func__, where)
            return value
        if name == "forward" or getattr(nn.Module, name, None) is value.__func__:
            return getattr(self._new[holder], name)
        self._refuse(holder, (where, f"method {name!r}"))
        return value

    def _weak(self, value: weakref.ref[Any], where: _Where) -> Any:
        target = value()
        if isinstance(target, nn.Module) and target in self._new and value.__callback__ is None:
            return weakref.ref(self._new[target])
        self._close(value, where)
        return value

    def _is_twin(self, module: nn.Module) -> bool:
        """Whether a module has parameters of a replaced one, as the copy of a weak proxy does."""
        return any(id(parameter) in self._weights for parameter in vars(module).get("_parameters", {}).values())

    # References that cannot be changed.

    def _class(self, cls: type, where: _Where) -> None:
        """Visit the attributes of a module's class, and the globals that its forward uses."""
        for base in cls.__mro__:
            if base.__module__.startswith("torch."):
                continue
            for name, value in vars(base).items():
                if name == "forward" or isinstance(value, (nn.Module, *_CONTAINERS)):
                    self._close(value, (where, f"class {base.__qualname__!r}, attribute {name!r}"))

    def _close(self, value: Any, where: _Where, depth: int = 0) -> None:
        if depth < _DEPTH and id(value) not in self._shut_seen:
            self._shut_seen[id(value)] = value
            self._shut.append((value, where, depth))

    def _visit_shut(self, value: Any, where: _Where, depth: int) -> None:
        if id(value) in self._seen:
            return
        for label, held in _parts(value):
            if type(held) in _ATOMS or isinstance(held, Tensor | type):
                continue
            inside = (where, label)
            if isinstance(held, nn.Module) and (held in self._new or id(held) in self._foreign):
                self._refuse(held, inside)
            elif id(held) not in self._own:
                self._close(held, inside, depth + 1)

    def _refuse(self, module: nn.Module, where: _Where) -> None:
        text = f"{_text(where)} (a {type(module).__name__})"
        if text not in self.fixed:
            self.fixed.append(text)


def _text(where: _Where) -> str:
    labels: list[str] = []
    while where is not None:
        where, label = where
        labels.append(label)
    return ", ".join(reversed(labels))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values held by an object that cannot be changed, with labels."""
    if type(value) in _PROXIES:
        with contextlib.suppress(ReferenceError):
            yield "weak proxy", value.__init__.__self__
    elif isinstance(value, types.FunctionType):
        yield from _held_by(value)
    elif isinstance(value, types.MethodType):
        yield f"method {value.__func__.__name__!r}", value.__self__
        yield f"method {value.__func__.__name__!r}", value.__func__
    elif isinstance(value, weakref.ref):
        yield "weak reference", value()
    elif isinstance(value, partial):
        yield from (("partial", held) for held in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, Mapping | weakref.WeakValueDictionary | weakref.WeakKeyDictionary):
        for key, held in list(value.items()):
            yield "a key", key
            yield f"item {key!r}" if isinstance(key, str | int) else "an item", held
    elif isinstance(value, Sequence | set | frozenset | deque | weakref.WeakSet):
        yield from (("an item", held) for held in list(value))
    else:
        yield from ((f"attribute {name!r}", held) for name, held in list(attributes(value).items()))


def _held_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    name = f"function {function.__qualname__!r}"
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{name}, variable {variable!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for held in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield f"{name}, default value", held
    for attribute, held in vars(function).items():
        yield f"{name}, attribute {attribute!r}", held
    for variable in _names(function.__code__):
        held = function.__globals__.get(variable)
        if isinstance(held, (nn.Module, types.MethodType, partial, *_CONTAINERS)):
            yield f"{name}, global {variable!r}", held


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
