"""JSON documents, read strictly and in one place: limits on everything, and clear words where a file is not one.

Every JSON text from outside (plans, reports, sources, cache entries, the tables inside a weights file) is read by
`parse_json`. It takes time and memory in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankfold._files import read_bytes, write_text
from rankfold._printable import escaped, printable, quoted
from rankfold.errors import ConfigError, CorruptArtifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a document may hold.

    Parameters
    ----------
    size : int
        Bytes.
    entries : int
        Values in all objects and lists together.
    depth : int
        Objects and lists inside each other.
    digits : int
        Of one number.
    text : int
        Characters of one string.
    """

    size: int = 8 * 2**20
    entries: int = 300_000
    depth: int = 64
    digits: int = 100
    text: int = 100_000


LIMITS = Limits()
"""Plans, reports and all else: a plan of 10,000 layers takes a quarter of it."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse_json(text: str, *, source: str, limits: Limits = LIMITS) -> Any:
    """Return the value of a JSON text.

    Parameters
    ----------
    source : str
        Where it is from, for the messages.
    limits : Limits
        The most that it may hold.

    Raises
    ------
    CorruptArtifact
        If the text is not JSON, exceeds a limit, names something twice in an object, or holds half a surrogate pair.
    """
    _check_limits(text, source, limits)

    def whole(digits: str) -> int:
        if len(digits) > limits.digits:
            raise CorruptArtifact(f"{source} has a number of {len(digits):,} digits; at most {limits.digits} are read.")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Build an object; plain `json` would silently take the last of two entries with one name."""
        out = dict(pairs)
        if len(out) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CorruptArtifact(f"{source} has {quoted(twice)} twice; remove one of them.")
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=whole)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorruptArtifact):
            raise
        raise CorruptArtifact(f"{source} is not valid JSON: {error}. Was it edited or truncated?") from error
    if len(text) > limits.text:
        _check_texts(value, source, limits.text)
    if "\\ud" in text.lower() and _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise CorruptArtifact(f"{source} holds half a surrogate pair (such as \\ud800), which is not text. Remove it.")
    return value


def _check_limits(text: str, source: str, limits: Limits) -> None:
    """Raise for a text that is too large before anything is built from it; JSON's own errors are found later."""
    if len(text) > limits.size:
        raise CorruptArtifact(f"{source} has {len(text):,} characters; at most {limits.size:,} are read.")
    structure = _STRING.sub("", text)
    entries = structure.count(",") + structure.count("[") + structure.count("{")
    entries = max(entries, structure.count("]") + structure.count("}"))
    if entries > limits.entries:
        raise CorruptArtifact(f"{source} has {entries:,} entries; at most {limits.entries:,} are read.")
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", structure):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > limits.depth:
        raise CorruptArtifact(f"{source} is nested {deepest:,} deep; at most {limits.depth} levels are read.")


def _check_texts(value: Any, source: str, longest: int) -> None:
    """Raise for a string that is too long; the value is nested no deeper than the limits allow."""
    if isinstance(value, str) and len(value) > longest:
        raise CorruptArtifact(f"{source} has a text of {len(value):,} characters; at most {longest:,} are read.")
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
        What it holds, in a word such as ``"plan"``.
    format, version : str, int
        What it calls itself, and the newest version that is understood.
    source : str
        Where it is from, for the messages.
    limits : Limits
        The most that it may hold.

    Raises
    ------
    CorruptArtifact
        If the text is not JSON, another document, of a newer version, too large, or names something twice.
    """
    data = parse_json(text, source=source, limits=limits)
    if not isinstance(data, Mapping) or data.get("format") != format:
        raise CorruptArtifact(f"{source} is not a rankfold {kind} (its 'format' is not {format!r}).")
    found = data.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= version:
        raise CorruptArtifact(
            f"{source} has {kind} version {quoted(found)}; this rankfold reads up to {version}. Upgrade rankfold."
        )
    return data


def read_text(path: Path, *, kind: str, hint: str, limits: Limits = LIMITS) -> str:
    """Return the text of a document's file, which must be a regular one and not too large.

    Raises
    ------
    CorruptArtifact
        If there is none (`hint` says what to give), or it cannot be read.
    """
    try:
        return read_bytes(path, limit=limits.size).decode("utf-8")
    except FileNotFoundError as error:
        raise CorruptArtifact(f"there is no {kind} at {str(path)!r}. {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the {kind} {str(path)!r} cannot be read: {error}.") from error


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Return JSON text that people can read, with everything that a terminal would obey as an escape.

    It is read back without loss, except halves of surrogate pairs: these are not text, and are written out.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    return "".join(c if printable(c) == c else _json_escape(c) for c in line)


def _json_escape(character: str) -> str:
    if _LONE_SURROGATE.match(character):
        return f"\\{escaped(character)}"
    return json.dumps(character)[1:-1] if ord(character) != 0x7F else "\\u007f"


def write_by_suffix(path: str | Path, writers: Mapping[str, Callable[[], str]], *, what: str) -> Path:
    """Write a file, whole or not at all, in the form that its suffix names.

    Parameters
    ----------
    writers : mapping of str to callable
        Returns the text, by suffix.
    what : str
        What is written, with its article, such as ``"a report"``.

    Raises
    ------
    ConfigError
        If the suffix is another one.
    RankfoldError
        If the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise ConfigError(f"the suffix of {what} must be one of {', '.join(writers)}. Got {str(path)!r} instead.")
    return write_text(path, writers[suffix]())
