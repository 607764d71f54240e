"""Outputs: found out before the work whether they can be written, and listed after it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankfold._files import check_writable
from rankfold.api.realizing import Destination
from rankfold.cli._session import Output
from rankfold.cli._source import Source
from rankfold.errors import ConfigError, RankfoldError
from rankfold.reporting import Report
from rankfold.storage.folder import PLAN_FILE


def destination(path: str, source: Source) -> Destination:
    """Return where an artefact goes, with ``source.json``, or say why that will not work.

    Raises
    ------
    RankfoldError
        If it is a file, holds other files or a damaged artefact, or cannot be written to. Nothing is written.
    """
    to = Destination(folder=Path(path).expanduser(), beside=source.texts)
    try:
        to.check()
    except RankfoldError as error:
        raise RankfoldError(f"--out: {error}") from error
    return to


def check_file(path: str, suffixes: tuple[str, ...], flag: str = "--out") -> Path:
    """Return the file to write to, or say why that will not work."""
    file = Path(path).expanduser()
    if os.path.isdir(file):
        raise RankfoldError(f"{flag} {path!r} is a folder. Give a file ending in {' or '.join(suffixes)}.")
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"{flag} must end in {' or '.join(suffixes)}. Got {path!r} instead.")
    check_writable(file.parent)
    return file


def close(out: Output, command: str, report: Report, files: Mapping[str, Path], **more: Any) -> None:
    """Print the report and where everything lies."""
    out.show(report.print)
    for what, path in files.items():
        out.say(f"{what + ':':<10} {path}")
    out.document(
        {
            "command": command,
            "files": {what: str(path) for what, path in files.items()},
            **more,
            "report": json.loads(report.to_json()),
        }
    )


def artifact_files(folder: Path) -> dict[str, Path]:
    """Return what an artefact's folder holds, by what it is."""
    found = {"artefact": folder, "plan": folder / PLAN_FILE, "report": folder / "report.html"}
    return {what: path for what, path in found.items() if path.exists()}
