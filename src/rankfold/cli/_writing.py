"""Output files: checked before the work starts, and listed after it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rankfold._files import check_writable
from rankfold.api.realizing import Destination
from rankfold.cli._session import Output
from rankfold.cli._source import Source
from rankfold.errors import ConfigError, RankfoldError
from rankfold.records.amounts import either
from rankfold.reporting import Report
from rankfold.reporting.document import Document
from rankfold.storage.folder import PLAN_FILE


def destination(path: str, source: Source) -> Destination:
    """Return the destination of an artifact with its ``source.json``; raise if it cannot be written there."""
    to = Destination(folder=Path(path).expanduser(), companions=source.texts)
    try:
        to.check()
    except RankfoldError as error:
        raise RankfoldError(f"--out: {error}") from error
    return to


def check_file(path: str, suffixes: tuple[str, ...], flag: str = "--out") -> Path:
    """Return the path of an output file; raise if it has another suffix or cannot be written."""
    file, wanted = Path(path).expanduser(), either(suffixes)
    if os.path.isdir(file):
        raise RankfoldError(f"{flag} {path!r} is a folder. Pass a file ending in {wanted}.")
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"{flag} must end in {wanted}. Got {path!r} instead.")
    check_writable(file.parent)
    return file


def save_document(document: Document, files: Iterable[Path], out: Output) -> dict[str, str]:
    """Write a document to files, say where, and return the paths by suffix."""
    written: dict[str, str] = {}
    for file in files:
        document.save(file)
        written[file.suffix[1:]] = str(file)
        out.say(f"{file.suffix[1:]}: {file}")
    return written


def close(out: Output, command: str, report: Report, files: Mapping[str, Path], **more: Any) -> None:
    """Print the report and the paths of the output files."""
    out.show(report.print)
    for what, path in files.items():
        out.say(f"{what + ':':<10} {path}")
    written = {what: str(path) for what, path in files.items()}
    out.document({"command": command, "files": written, **more, "report": json.loads(report.to_json())})


def artifact_files(folder: Path) -> dict[str, Path]:
    """Return the folder of an artifact and the files in it that users open."""
    files = {"artifact": folder, "plan": folder / PLAN_FILE, "report": folder / "report.html"}
    return {what: path for what, path in files.items() if path.exists()}
