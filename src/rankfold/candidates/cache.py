"""Measurements on disk, from which an interrupted search resumes."""

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
"""Number of digits of a key's hash, which is the name of its file."""


class Cache:
    """JSON values in a folder, one file per key, written atomically.

    The folder is created with the first value. If it is not writable, `RankfoldError` is raised at once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_writable(self.folder)
        sweep(self.folder, f"{'?' * _DIGITS}.json")

    def get(self, key: Mapping[str, Any]) -> Any:
        """Return the JSON value of a key; None if there is none, or if its file is damaged or of another origin."""
        file = self._file(key)
        try:
            data = parse_json(read_text(file, kind="cache entry", hint=""), source=str(file))
        except CorruptArtifact:
            return None
        ours = isinstance(data, dict) and data.get("version") == _VERSION and data.get("key") == _plain(key)
        return data.get("value") if ours else None

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Store a JSON value under a key, a mapping of everything that it depends on."""
        text = json.dumps({"version": _VERSION, "key": _plain(key), "value": value})
        write_text(self._file(key), text, sweeping=False)

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{json_hash(dict(key))[:_DIGITS]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return the key as stored in JSON, with lists for tuples."""
    return json.loads(json.dumps(key, default=str))
