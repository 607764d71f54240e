"""``rankfold report``: an artefact's report in any form."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

EXAMPLE = "Example: rankfold report small --out small.md"

ReportSource = Annotated[
    str, typer.Argument(help="An artefact's folder, or a report.json.", metavar="ARTEFACT", show_default=False)
]
ReportOut = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", help="File to write, ending in .html, .md or .json; else it is printed.", metavar="FILE"
    ),
]


@command
def report(artifact: ReportSource, out: ReportOut = None, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Print an artefact's report, or write it as HTML, Markdown or JSON."""
    from rankfold.cli._writing import check_file
    from rankfold.reporting import Report

    with session(as_json=as_json, quiet=quiet) as printer:
        file = None if out is None else check_file(out, (".html", ".md", ".json"))
        found = Report.load(artifact)
        if file is None:
            printer.show(found.print)
        else:
            found.save(file)
            printer.say(f"report: {file}")
        files = {} if file is None else {"report": str(file)}
        printer.document({"command": "report", "files": files, "report": json.loads(found.to_json())})
