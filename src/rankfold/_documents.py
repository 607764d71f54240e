"""Strict reading of JSON documents, with limits on everything and clear messages for invalid files.

`parse_json` reads every JSON text from outside (plans, reports, sources, cache entries, the tables inside a weights
file). Its time and memory are proportional to the length of the text, whatever the text contains.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankfold._config import is_integer
from rankfold._files import read_bytes, write_text
from rankfold._printable import escaped, printable, quoted
from rankfold.errors import ConfigError, CorruptArtifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a document: its bytes, values, levels of nesting, digits per number, and characters per string.

    A plan of 10,000 layers takes a quarter of the default size.
    """

    size: int = 8 * 2**20
    entries: int = 300_000
    depth: int = 64
    digits: int = 100
    text: int = 100_000


LIMITS = Limits()

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse_json(text: str, *, source: str, limits: Limits = LIMITS) -> Any:
    """Return the value of a JSON text; `source` names its origin in messages.

    Raises
    ------
    CorruptArtifact
        If the text is not JSON, exceeds a limit, repeats a key in an object, or contains half a surrogate pair or a
        number that is not finite.
    """
    _check_limits(text, source, limits)

    def whole(digits: str) -> int:
        if len(digits) > limits.digits:
            raise CorruptArtifact(f"{source} has a number with {len(digits):,} digits; the limit is {limits.digits}.")
        return int(digits)

    def finite(text: str) -> float:
        """Read a number with a point or an exponent, or one of the constants that `json` accepts (NaN, Infinity)."""
        number = float(text)
        if not math.isfinite(number):
            raise CorruptArtifact(f"{source} has the number {quoted(text)}, which is not finite. Correct it.")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Build an object; `json` alone would silently take the last of two entries with the same key."""
        out = dict(pairs)
        if len(out) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CorruptArtifact(f"{source} has the key {quoted(twice)} twice. Remove one of them.")
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=whole, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorruptArtifact):
            raise
        raise CorruptArtifact(
            f"{source} is not valid JSON: {error}. It may be edited or truncated; restore or recreate it."
        ) from error
    if len(text) > limits.text:
        _check_texts(value, source, limits.text)
    if "\\ud" in text.lower() and _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise CorruptArtifact(f"{source} has half a surrogate pair (such as \\ud800), which is not valid. Remove it.")
    return value


def _check_limits(text: str, source: str, limits: Limits) -> None:
    """Raise for a text that is too large before anything is built from it; errors of syntax are reported later."""
    if len(text) > limits.size:
        raise CorruptArtifact(f"{source} has {len(text):,} characters; the limit is {limits.size:,}.")
    structure = _STRING.sub("", text)
    entries = structure.count(",") + structure.count("[") + structure.count("{")
    entries = max(entries, structure.count("]") + structure.count("}"))
    if entries > limits.entries:
        raise CorruptArtifact(f"{source} has {entries:,} entries; the limit is {limits.entries:,}.")
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", structure):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > limits.depth:
        raise CorruptArtifact(f"{source} is nested {deepest:,} levels deep; the limit is {limits.depth}.")


def _check_texts(value: Any, source: str, longest: int) -> None:
    """Raise for a string that is too long; the depth of the value is already checked."""
    if isinstance(value, str) and len(value) > longest:
        raise CorruptArtifact(f"{source} has a string of {len(value):,} characters; the limit is {longest:,}.")
    if isinstance(value, dict):
        for key in value:
            _check_texts(key, source, longest)
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            _check_texts(entry, source, longest)


def parse_document(
    text: str, *, kind: str, format: str, version: int, source: str, limits: Limits = LIMITS
) -> Mapping[str, Any]:
    """Return the content of a JSON document.

    Parameters
    ----------
    kind : str
        The kind of document in messages, such as ``"plan"``.
    format, version : str, int
        The value of its field "format", and the newest version that can be read.
    source, limits : str, Limits
        As in `parse_json`.

    Raises
    ------
    CorruptArtifact
        If `parse_json` rejects the text, or it is another document or has a newer version.
    """
    data = parse_json(text, source=source, limits=limits)
    if not isinstance(data, Mapping) or data.get("format") != format:
        raise CorruptArtifact(f"{source} is not a rankfold {kind} (its 'format' is not {format!r}).")
    stored = data.get("version")
    if not is_integer(stored) or not 1 <= stored <= version:
        raise CorruptArtifact(
            f"{source} has {kind} version {quoted(stored)}; this version of rankfold reads versions up to "
            f"{version}. Upgrade rankfold."
        )
    return data


def read_text(path: Path, *, kind: str, hint: str, limits: Limits = LIMITS) -> str:
    """Return the text of a document's file; raise `CorruptArtifact` if it is missing (with `hint`) or unreadable."""
    try:
        return read_bytes(path, limit=limits.size).decode("utf-8")
    except FileNotFoundError as error:
        raise CorruptArtifact(f"there is no {kind} at {str(path)!r}. {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the {kind} {str(path)!r} cannot be read: {error}.") from error


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Return readable JSON text in which control characters are escaped; raise ValueError for NaN and infinity.

    Reading it back loses nothing but halves of surrogate pairs, which are not text.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if printable(character) == character:
        return character
    if _LONE_SURROGATE.match(character):
        return f"\\{escaped(character)}"
    return json.dumps(character)[1:-1] if ord(character) != 0x7F else "\\u007f"


def write_by_suffix(path: str | Path, writers: Mapping[str, Callable[[], str]], *, what: str) -> Path:
    """Write a file atomically in the format of its suffix; `writers` return the text, `what` is such as "a report".

    Raises
    ------
    ConfigError
        If there is no writer for the suffix.
    RankfoldError
        If the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise ConfigError(f"the suffix of {what} must be one of {', '.join(writers)}. Got {str(path)!r} instead.")
    return write_text(path, writers[suffix]())
