"""What has been measured, on disk: a search that was killed goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankfold._config import is_number
from rankfold._documents import parse_json, read_text
from rankfold._files import check_writable, sweep, write_text
from rankfold._hashing import json_hash
from rankfold.errors import CorruptArtifact

_VERSION = 1
_DIGITS = 32
"""Of a key's hash, which is the name of its file."""


class Cache:
    """Numbers in a folder, one file for each key; files appear whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Made when the first numbers are stored.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_writable(self.folder)
        sweep(self.folder, f"{'?' * _DIGITS}.json")

    def get(self, key: Mapping[str, Any], count: int) -> list[float] | None:
        """Return the numbers stored under a key; None if there are none, or the file is not ours or damaged."""
        file = self._file(key)
        try:
            data = parse_json(read_text(file, kind="cache entry", hint=""), source=str(file))
        except CorruptArtifact:
            return None
        if not isinstance(data, dict) or data.get("version") != _VERSION or data.get("key") != _plain(key):
            return None
        values = data.get("values")
        if not isinstance(values, list) or len(values) != count:
            return None
        if not all(is_number(v) and math.isfinite(v) and v >= 0 for v in values):
            return None
        return [float(v) for v in values]

    def put(self, key: Mapping[str, Any], values: list[float]) -> None:
        """Store numbers under a key, a mapping that says all that they depend on."""
        text = json.dumps({"version": _VERSION, "key": _plain(key), "values": values})
        write_text(self._file(key), text, sweeping=False)

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{json_hash(dict(key))[:_DIGITS]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return the key as it comes out of a file: with lists for tuples."""
    return json.loads(json.dumps(key, default=str))
