"""``rankfold report``."""

from __future__ import annotations

import json
from dataclasses import replace

from rankfold._options import Flag
from rankfold.cli._command import Given, command
from rankfold.cli._options import FLAGS
from rankfold.cli._session import Output
from rankfold.cli._writing import check_file
from rankfold.reporting import Report


@command(
    "rankfold report small --out small.md",
    "artifact", "out",
    artifact=replace(FLAGS["artifact"], help="An artifact's folder, or a report.json."),
    out=Flag(
        kind=str | None, names=("--out", "-o"), metavar="FILE",
        help="File to write, ending in .html, .md or .json. By default the report is printed.",
    ),
)  # fmt: skip
def report(given: Given, out: Output) -> None:
    """Print an artifact's report, or write it as HTML, Markdown or JSON."""
    file = None if given.out is None else check_file(given.out, (".html", ".md", ".json"))
    loaded = Report.load(given.artifact)
    files: dict[str, str] = {}
    if file is None:
        out.show(loaded.print)
    else:
        loaded.save(file)
        files["report"] = str(file)
        out.say(f"report: {file}")
    out.document({"command": "report", "files": files, "report": json.loads(loaded.to_json())})
