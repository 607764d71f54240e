"""Frozen config dataclasses built from plain mappings, with errors that name the option as the user writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard, TypeVar

from rankfold.errors import ConfigError, UnknownNameError

C = TypeVar("C")

NAME_ONLY = object()
"""The value of an option of which a message states the name only."""

Spelling = Callable[[str, Any, str], str]
"""Returns the text of an option, its value and the class that has it; see `spelled`."""


class Code(str):
    """A value in a message that is Python code, such as ``rf.top1(loader)``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def in_python(option: str, value: Any, of: str) -> str:
    """Return an option as Python's users write it."""
    if value is NAME_ONLY:
        return option
    text = f"{option}={'...' if value is ... else repr(value)}"
    return f"{of}({text})" if of else text


_spelling: ContextVar[Spelling] = ContextVar("spelling", default=in_python)


def spelled(option: str, value: Any = NAME_ONLY, *, of: str = "") -> str:
    """Return an option for a message: ``seed=3`` in Python, ``--seed 3`` on the command line.

    Parameters
    ----------
    option : str
        The name in Python.
    value : object
        The value to write: ``...`` for any value, `Code` for Python code. By default the name alone is returned.
    of : str
        The class that has the option, such as ``"FineTune"``, if that is unclear.
    """
    return _spelling.get()(option, value, of)


@contextmanager
def spelling(write: Spelling) -> Iterator[None]:
    """Let messages write options in another way."""
    token = _spelling.set(write)
    try:
        yield
    finally:
        _spelling.reset(token)


def build_config(config: type[C], options: Mapping[str, Any] | C | None, *, owner: str) -> C:
    """Return an instance of a config dataclass.

    Parameters
    ----------
    config : type
        The dataclass.
    options : mapping, instance or None
        Values by field name; an instance is returned unchanged; None gives the defaults.
    owner : str
        The owner of the options in messages, such as ``"strategy 'energy'"``.

    Raises
    ------
    UnknownNameError
        If an option does not exist; the message suggests the nearest one.
    ConfigError
        If a value has the wrong type or is out of range.
    """
    if isinstance(options, config):
        return options
    if options is None:
        return config()
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"options of {owner} must be a mapping or {config.__name__}. Got {type(options).__name__} instead."
        )
    known = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise UnknownNameError("option", key, sorted(known), of=owner)
    try:
        return config(**{k: _tuples(v) for k, v in options.items()})
    except TypeError as error:
        raise ConfigError(f"options of {owner}: {error}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON-ready values."""
    return {f.name: _lists(getattr(config, f.name)) for f in dataclasses.fields(config)}


def changed(config: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults as JSON-ready values; every field must have a default."""
    default = config_to_dict(type(config)())
    return {name: value for name, value in config_to_dict(config).items() if value != default[name]}


def require(condition: bool, option: str, value: object, wanted: str) -> None:
    """Raise `ConfigError`, in the wording that all options share, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{spelled(option)} must be {wanted}. Got {value!r} instead.")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or float, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an int, but not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _lists(value: Any) -> Any:
    """Return the value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def _tuples(value: Any) -> Any:
    """Return the value with tuples in place of JSON's lists."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
