"""Options in messages, as they are written on the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rankfold import strategies
from rankfold._config import NAME_ONLY, Code, Spelling, in_python
from rankfold._options import Flag, spellings
from rankfold.tune import FineTune


def spelling_of(flags: Mapping[str, Flag]) -> Spelling:
    """Return how a command with these flags writes the options of Python.

    An option without a flag of its own is a field of the fine-tuning recipe or of a strategy, or is only available in
    Python, which the text then says.
    """
    replaced = {option: (name, flag) for name, flag in flags.items() for option in flag.stands_for}
    known = {**replaced, **{name: (name, flag) for name, flag in flags.items()}}
    groups = {
        "finetune_option": _fields(FineTune),
        "strategy_option": {name for entry in strategies.registry for name in _fields(entry.plugin)},
    }

    def write(option: str, value: Any, of: str) -> str:
        if option in known:
            name, flag = known[option]
            return _flag(name, flag, value if name == option else NAME_ONLY)
        group = next((name for name, options in groups.items() if name in flags and option in options), None)
        if group is not None and not isinstance(value, Code):
            return key_of(spellings(group, flags[group])[0])(option, value, of)
        text = in_python(option, value, of)
        return text if value is NAME_ONLY else f"{text} in Python"

    return write


def key_of(flag: str) -> Spelling:
    """Return how options are written as ``KEY=VALUE`` of a flag."""

    def write(option: str, value: Any, _of: str) -> str:
        if value is NAME_ONLY:
            return f"{flag} {option}"
        shown = "..." if value is ... else value if isinstance(value, str) else json.dumps(value)
        return f"{flag} {option}={shown}"

    return write


def _fields(record: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def _flag(name: str, flag: Flag, value: Any) -> str:
    if flag.names is None:
        return flag.metavar or name.upper()
    first, *negative = spellings(name, flag)[0].split("/")
    if isinstance(value, bool):
        return negative[0] if negative and not value else first
    if value is NAME_ONLY or value is ... or isinstance(value, Code):
        return first
    return f"{first} {value}"
