"""Options as fields of frozen records, each with its name, type, default, check, help and command-line flag.

A field created by `option` holds everything that Python, the command line and the documentation say about it. The
command line takes its flags from `options_of`, `document` writes the record's docstring, and `options_table` the table
in the documentation.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rankfold._config import config_to_dict, is_integer, require
from rankfold.errors import UnknownNameError

R = TypeVar("R")
T = TypeVar("T", bound=type)

PARAMETERS = "Parameters\n----------\n"
"""The heading of the parameters in a docstring."""

_PARAMETER = re.compile(r"^(\S.*) : (.*)\n((?: {4}.*\n?)+)", re.MULTILINE)
_BOLD = re.compile(r"\*\*(\w[^*]*)\*\*")

Check = Callable[[str, Any], object]
"""``check(name, value)`` raises `ConfigError` for an invalid value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option of the command line.

    Parameters
    ----------
    kind : type
        The type on the command line, such as ``int``, ``str | None`` or ``list[str] | None``.
    help : str
        One or two sentences.
    default : object
        The default value.
    names : tuple of str
        Spellings such as ``("--strategy", "-s")``, by default derived from the name. None is a positional argument.
    metavar : str or None
        The placeholder for the value in the help.
    check : callable or None
        ``check(name, value)`` raises for an invalid value; for an option of a record, its own check.
    stands_for : tuple of str
        Names in Python of the options that the flag sets, if they differ from its own.
    panel : str
        Heading in the help.
    parse : callable or None
        Converts the command line's value to the record's.
    """

    kind: Any
    help: str = ""
    default: Any = None
    names: tuple[str, ...] | None = ()
    metavar: str | None = None
    check: Check | None = None
    stands_for: tuple[str, ...] = ()
    panel: str | None = None
    parse: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The metadata of one option, in addition to its name, type and default."""

    help: str
    check: Check | None
    flag: Flag | None


def option(default: Any, help: str, *, check: Check | None = None, flag: Flag | None = None) -> Any:
    """Return a dataclass field that is an option.

    Parameters
    ----------
    default : object
        The default, in Python and on the command line.
    help : str
        The description in the docstring, the command line's help and the documentation.
    check : callable, optional
        ``check(name, value)`` raises for an invalid value; None is checked like any other value.
    flag : Flag, optional
        The flag on the command line; without one, the option exists in Python only.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help=help, check=check, flag=flag)})


def options_of(record: Any) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Return the fields and options of a record, or of its class, by name."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(record) if "option" in f.metadata}


def check_options(record: Any) -> None:
    """Raise `ConfigError` for the first option of a record with an invalid value."""
    for name, (_, described) in options_of(record).items():
        if described.check is not None:
            described.check(name, getattr(record, name))


def options_from(record: type[R], values: Mapping[str, Any]) -> R:
    """Return a record with options by name; raise `UnknownNameError` or `ConfigError` if they are invalid."""
    known = sorted(options_of(record))
    for name in values:
        if name not in known:
            raise UnknownNameError("option", name, known)
    return record(**values)


def given(record: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults as JSON-ready values."""
    return {
        name: _plain(getattr(record, name))
        for name, (field, _) in options_of(record).items()
        if getattr(record, name) != field.default
    }


def document(record: T) -> T:
    """Add the options of a record class to its docstring, as a numpydoc section."""
    lines = [record.__doc__ or "", "", *PARAMETERS.split()]
    for name, (field, described) in options_of(record).items():
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        lines += [f"{name} : {kind}", f"    {described.help} The default is ``{field.default!r}``."]
    record.__doc__ = "\n".join(lines)
    return record


def options_table(record: Any) -> str:
    """Return the options of a record class as a Markdown table: Python, command line, default, help."""
    lines = ["| option | command line | default | what it does |", "|---|---|---|---|"]
    for name, (field, described) in options_of(record).items():
        flag = described.flag
        spelled = "" if flag is None else ", ".join(f"`{s}`" for s in spellings(name, flag))
        help = described.help.replace("|", "\\|")
        lines.append(f"| `{name}` | {spelled} | `{field.default!r}` | {help} |")
    return "\n".join(lines)


def spellings(name: str, flag: Flag) -> tuple[str, ...]:
    """Return the spellings of an option on the command line."""
    return flag.names or (f"--{name.replace('_', '-')}",)


def boolean(name: str, value: object) -> None:
    """Check a boolean option."""
    require(isinstance(value, bool), name, value, "True or False")


def integer(least: int, most: int | None = None, *, optional: bool = False) -> Check:
    """Return a check for integers from `least` to `most`, or None if `optional`."""
    wanted = f"an integer of at least {least}" if most is None else f"an integer from {least} to {_readable(most)}"

    def check(name: str, value: object) -> None:
        if value is None and optional:
            return
        require(is_integer(value) and least <= value and (most is None or value <= most), name, value, wanted)

    return check


def among(names: Collection[str]) -> Check:
    """Return a check for one of some names, or None."""

    def check(name: str, value: object) -> None:
        if value is not None and value not in names:
            raise UnknownNameError(name, str(value), names)

    return check


def _readable(number: int) -> str:
    bits = number.bit_length()
    return f"2^{bits} - 1" if bits > 31 and number == 2**bits - 1 else f"{number:,}"


COUNT = integer(1)
SEED = integer(0, 2**63 - 1)
"""torch's generators accept every such number."""


def documented(record: type) -> dict[str, tuple[str, str]]:
    """Return type and description of each parameter in the docstrings of a class and its bases, by name."""
    result: dict[str, tuple[str, str]] = {}
    for base in reversed(record.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition(PARAMETERS)[2].partition("\n\n")[0]
        for names, kind, text in _PARAMETER.findall(section):
            result |= dict.fromkeys(names.split(", "), (kind, without_markup(text)))
    return result


def without_markup(text: str) -> str:
    """Return the text of a docstring on one line, without the marks of code and bold type."""
    return " ".join(_BOLD.sub(r"\1", text.replace("`", "")).split())


def _plain(value: Any) -> Any:
    """Return a value in JSON's types; classes and other objects become text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(v) for v in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__, **{k: _plain(v) for k, v in config_to_dict(value).items()}}
    return str(value)
