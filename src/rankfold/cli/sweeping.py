"""``rankfold sweep``: plans for a whole range of budgets from one table."""

from __future__ import annotations

from pathlib import Path

import rankfold as rf
from rankfold._options import Flag
from rankfold.api.checks import check_measurable
from rankfold.api.realizing import Destination
from rankfold.api.sweeping import check_range
from rankfold.cli._command import Given, command
from rankfold.cli._loading import given_source, open_work
from rankfold.cli._options import OUTPUT
from rankfold.cli._parsing import parse_budget, search_options
from rankfold.cli._session import Output
from rankfold.cli._writing import check_file
from rankfold.errors import ConfigError
from rankfold.records import Budget, resource_names
from rankfold.records.amounts import either

SUFFIXES = (".html", ".json", ".md", ".csv")

_POINTS = "Budgets"


@command(
    "rankfold sweep lenet5_mnist5k --weights bundled --data mnist5k --points 20 --out sweep.html",
    "model", "out", "models", "resource", "points", "between", "at", "evaluate", "no_evaluate", "search", "source",
    out=Flag(
        kind=list[str] | None, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File ending in .html, .json, .md or .csv; may be repeated.",
    ),
    models=Flag(kind=str | None, metavar="FOLDER", panel=OUTPUT, help="Folder for an artefact of every point."),
    resource=Flag(
        kind=str, default="params", panel=_POINTS, help=f"What is varied: {either(resource_names('additive'))}."
    ),
    points=Flag(
        kind=int, default=20, least=2, panel=_POINTS,
        help="How many budgets, evenly spaced from the least that can be reached.",
    ),
    between=Flag(
        kind=str | None, metavar="SHARES", panel=_POINTS,
        help="Shares of the model that the budgets lie between, such as 20%,80%.",
    ),
    at=Flag(
        kind=list[str] | None, metavar="BOUND", panel=_POINTS,
        help="One budget, instead of --points and --between; may be repeated.",
    ),
    budget=Flag(
        kind=list[str] | None, names=("--budget", "-b"), metavar="BOUND", panel=_POINTS,
        help="Bound that holds at every point as well, such as macs<=50%; may be repeated.",
    ),
    evaluate=Flag(
        kind=int | None, least=1, metavar="N", panel=OUTPUT,
        help="How many points are applied and measured on the test images. By default all.",
    ),
    no_evaluate=Flag(kind=bool, default=False, panel=OUTPUT, help="Plan only: measure no model."),
)  # fmt: skip
def sweep(given: Given, out: Output) -> None:
    """Plan for many budgets at once: the front of size against predicted loss, and a family of models.

    Candidates are priced and measured once; each budget then takes moments. With --data the plans are applied one at
    a time and measured on the test images. With --cache a sweep that was killed resumes.
    """
    source = given_source(given)
    budget, search = parse_budget(given.budget), search_options(given)
    if given.no_evaluate and given.evaluate is not None:
        raise ConfigError("--evaluate and --no-evaluate contradict each other. Leave one of them out.")
    if given.evaluate is not None and given.data is None:
        raise ConfigError(f"--evaluate {given.evaluate} needs images to measure on. Give --data.")
    limits = None if given.between is None else parse_limits(given.between)
    points = [Budget.parse(text) for text in given.at] if given.at else given.points
    check_range(given.resource, points, limits)
    for one in (*(points if isinstance(points, list) else ()), budget):
        check_measurable(one)
    files = [check_file(path, SUFFIXES) for path in given.out or ()]
    work = open_work(source, given)
    result = rf.sweep(
        work.dense,
        work.example,
        resource=given.resource,
        points=points,
        limits=limits,
        budget=budget,
        calibration=work.calibration,
        evaluate=None if given.no_evaluate else work.metric,
        evaluate_points=given.evaluate,
        output=None if given.models is None else Destination(folder=Path(given.models), beside=source.texts),
        name=given.model,
        **search,
    )
    out.show(result.print)
    if given.models is not None:
        out.say(f"models: {given.models}")
    for file in files:
        result.save(file)
        out.say(f"{file.suffix[1:]}: {file}")
    written = {file.suffix[1:]: str(file) for file in files}
    written |= {} if given.models is None else {"models": given.models}
    out.document({"command": "sweep", "files": written, "sweep": result.to_dict()})


def parse_limits(text: str) -> tuple[float, float]:
    """Return ``(0.2, 0.8)`` for ``"20%,80%"``.

    Raises
    ------
    ConfigError
        If the text is not two growing shares.
    """
    try:
        shares = [float(p.strip().removesuffix("%")) / (100 if p.strip().endswith("%") else 1) for p in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 2 or not 0 < shares[0] < shares[1] < 1:
        raise ConfigError(f"--between must be two growing shares, such as 20%,80%. Got {text!r} instead.")
    return shares[0], shares[1]
