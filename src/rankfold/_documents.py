"""JSON documents of rankfold's own: a format by name, a version, and clear words where a file is not one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rankfold._files import write_text
from rankfold.errors import ConfigError, CorruptArtifact


def parse_document(text: str, *, kind: str, format: str, version: int, source: str) -> Mapping[str, Any]:
    """Return the content of a JSON document.

    Parameters
    ----------
    kind : str
        What it holds, in a word such as ``"plan"``.
    format, version : str, int
        What it calls itself, and the newest version that is understood.
    source : str
        Where it is from, for the messages.

    Raises
    ------
    CorruptArtifact
        If the text is no JSON, another document, of a newer version, or names something twice.
    """
    try:
        data = json.loads(text, object_pairs_hook=partial(_unique_keys, source=source))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorruptArtifact(f"{source} is not valid JSON: {error}. Was it edited or truncated?") from error
    if not isinstance(data, Mapping) or data.get("format") != format:
        raise CorruptArtifact(f"{source} is not a rankfold {kind} (its 'format' is not {format!r}).")
    found = data.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= version:
        raise CorruptArtifact(
            f"{source} has {kind} version {found!r}; this rankfold reads up to {version}. Upgrade rankfold."
        )
    return data


def read_text(path: Path, *, kind: str, hint: str) -> str:
    """Return the text of a document's file.

    Raises
    ------
    CorruptArtifact
        If there is none (`hint` says what to give), or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CorruptArtifact(f"there is no {kind} at {str(path)!r}. {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the {kind} {str(path)!r} cannot be read: {error}.") from error


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


def _unique_keys(pairs: list[tuple[str, Any]], *, source: str) -> dict[str, Any]:
    """Build a JSON object; plain `json` would silently take the last of two entries with one name."""
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise CorruptArtifact(f"{source} has {twice!r} twice; remove one of them.")
    return out
