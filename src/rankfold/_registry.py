"""The registry of plug-ins: methods, strategies and loss terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, Protocol, TypeVar, cast

from rankfold._config import build_config
from rankfold.errors import ConfigError, UnknownNameError


class Plugin(Protocol):
    """A frozen dataclass whose fields are its options."""

    name: str


T = TypeVar("T", bound=Plugin)


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A registered class with a one-line summary."""

    plugin: type[T]
    summary: str


class Registry(Generic[T]):
    """Named plug-ins of one `kind`, which error messages mention."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, plugin: type[T], *, summary: str) -> None:
        """Add a class under its `name`; raise `ConfigError` if the name is taken."""
        if plugin.name in self._entries:
            raise ConfigError(f"{self.kind} {plugin.name!r} is already registered. Use another name.")
        self._entries[plugin.name] = Entry(plugin, summary)

    def entry(self, name: str) -> Entry[T]:
        """Return the entry of `name`; raise `UnknownNameError` if there is none."""
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self.kind, name, self.names())
        return self._entries[name]

    def get(self, spec: str | T, options: Mapping[str, Any] | T | None = None) -> T:
        """Return a plug-in by name, with options, or a plug-in object as it is.

        Parameters
        ----------
        spec : str or object
            A name such as ``"qr"``, or an object of a registered class such as ``QR(pivoting=False)``.
        options : mapping, object or None
            Options of a name; None gives the defaults.

        Raises
        ------
        UnknownNameError
            If the plug-in or an option is unknown.
        ConfigError
            If an option has a value that is not allowed, or an object is given with further options.
        """
        for entry in self:
            if spec is entry.plugin:
                example = f"{entry.plugin.name!r} or {entry.plugin.__name__}()"
                raise ConfigError(f"a {self.kind} must be a name or an object: {example}. Got the class instead.")
        if isinstance(spec, str) or all(type(spec) is not entry.plugin for entry in self):
            return build_config(self.entry(cast("str", spec)).plugin, options, owner=f"{self.kind} {spec!r}")
        if options is not None:
            raise ConfigError(f"{self.kind} {spec.name!r} is given as an object. Set its options there.")
        return spec

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell pattern, sorted."""
        return sorted(n for n in self._entries if fnmatchcase(n, pattern))

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[n] for n in self.names()])
