"""What has been measured, on disk: a search that was killed resumes where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankfold._documents import parse_json, read_text
from rankfold._files import check_writable, sweep, write_text
from rankfold._hashing import json_hash
from rankfold.errors import CorruptArtifact

_VERSION = 2
_DIGITS = 32
"""Of a key's hash, which is the name of its file."""


class Cache:
    """JSON values in a folder, one file for each key; files appear whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Made when the first value is stored.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_writable(self.folder)
        sweep(self.folder, f"{'?' * _DIGITS}.json")

    def get(self, key: Mapping[str, Any]) -> Any:
        """Return the JSON value stored under a key; None if there is none, or the file is not ours or damaged."""
        file = self._file(key)
        try:
            data = parse_json(read_text(file, kind="cache entry", hint=""), source=str(file))
        except CorruptArtifact:
            return None
        ours = isinstance(data, dict) and data.get("version") == _VERSION and data.get("key") == _plain(key)
        return data.get("value") if ours else None

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Store a JSON value under a key, a mapping that names everything that it depends on."""
        text = json.dumps({"version": _VERSION, "key": _plain(key), "value": value})
        write_text(self._file(key), text, sweeping=False)

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{json_hash(dict(key))[:_DIGITS]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return the key as a file holds it, with lists for tuples."""
    return json.loads(json.dumps(key, default=str))
