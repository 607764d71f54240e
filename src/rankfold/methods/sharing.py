"""Reuse of prepared layers by the candidate table, the estimator and the factorization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankfold.factor.moments import Moments

ROOM = 2**26
"""Bytes of prepared layers that are kept: all layers of a small network, the first layers of a large one."""


class _Kept(NamedTuple):
    prepared: Any
    weight: Tensor
    version: int
    moments: Moments | None  # keeps the id in the key valid


class _Store:
    """Prepared layers by layer name, method and identity of the second moments."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, int], _Kept] = {}
        self._open: tuple[str, str, int] | None = None
        self._room = ROOM

    def get(self, name: str, method: str, weight: Tensor, moments: Moments | None, make: Callable[[], Any]) -> Any:
        """Return the stored layer, or a new one, which is stored if there is room."""
        key = (name, method, id(moments))
        kept = self._kept.get(key)
        if kept is not None and kept.version == kept.weight._version and _same(kept.weight, weight):
            return kept.prepared
        self._settle()
        prepared = make()
        if kept is None and self._room > 0:
            self._kept[key] = _Kept(prepared, weight, weight._version, moments)
            self._open = key
        return prepared

    def _settle(self) -> None:
        """Subtract the size of the last layer, including what it has computed since; drop it if it does not fit."""
        if self._open is None:
            return
        size = _bytes(self._kept[self._open].prepared, set())
        if size > self._room:
            del self._kept[self._open]
        else:
            self._room -= size
        self._open = None


_store: ContextVar[_Store | None] = ContextVar("prepared layers", default=None)


@contextmanager
def sharing_prepared() -> Iterator[None]:
    """Let `rankfold.methods.prepare` reuse prepared layers, up to `ROOM` bytes; inner blocks share the outer store."""
    token = _store.set(_store.get() or _Store())
    try:
        yield
    finally:
        _store.reset(token)


def shared(name: str, method: object, weight: Tensor, moments: Moments | None, make: Callable[[], Any]) -> Any:
    """Return a prepared layer, within `sharing_prepared` from the store."""
    store = _store.get()
    if store is None or weight.is_inference():  # inference tensors have no version counter
        return make()
    return store.get(name, repr(method), weight, moments, make)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.device == other.device and one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    )


def _bytes(value: Any, seen: set[int]) -> int:
    """Return the bytes of all tensors and arrays that an object holds, directly or in attributes and collections."""
    if isinstance(value, float | int | str | type) or callable(value) or id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], float):  # tables of errors, which may be long
            return 8 * len(value)
        return sum(_bytes(item, seen) for item in value)
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    held = [getattr(value, name, None) for name in slots] + list(getattr(value, "__dict__", {}).values())
    return sum(_bytes(item, seen) for item in held)
