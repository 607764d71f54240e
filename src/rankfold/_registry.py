"""One registry for every kind of plug-in: methods, strategies, networks, data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from rankfold.errors import UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """What is registered under one name."""

    name: str
    value: T
    config: type
    summary: str


class Registry(Generic[T]):
    """Named plug-ins of one kind.

    Parameters
    ----------
    kind : str
        The kind in the user's words; it appears in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, value: T, *, config: type, summary: str) -> None:
        """Add a plug-in; a name that is taken raises ``ValueError`` (nothing is overwritten)."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = Entry(name, value, config, summary)

    def get(self, name: str) -> Entry[T]:
        """Return the entry of `name`; raise `UnknownNameError` with the nearest name otherwise."""
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self.kind, name, self.names())
        return self._entries[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell pattern, sorted."""
        return sorted(n for n in self._entries if fnmatchcase(n, pattern))

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[n] for n in self.names()])
