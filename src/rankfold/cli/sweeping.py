"""``rankfold sweep``."""

from __future__ import annotations

from pathlib import Path

import rankfold as rf
from rankfold._options import Flag, integer
from rankfold.api.checks import check_measurable
from rankfold.api.realizing import Destination
from rankfold.api.sweeping import COUNT_OF_POINTS, MOST_POINTS, check_range
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._options import OUTPUT, PLANNED, budget_flag
from rankfold.cli._parsing import parse_budget, parse_share, search_options
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import check_file, save_document
from rankfold.errors import ConfigError
from rankfold.records import Budget, resource_names
from rankfold.records.amounts import either

_POINTS = "Budgets"


@command(
    "rankfold sweep lenet5_mnist5k --weights bundled --data mnist5k --points 20 --out sweep.html",
    "model", "out", "models", "resource", "points", "between", "at", "evaluate_points", "no_evaluate", "search",
    "source",
    out=Flag(
        kind=list[str] | None, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File ending in .html, .json, .md or .csv; may be repeated.",
    ),
    models=Flag(kind=str | None, metavar="FOLDER", panel=OUTPUT, help="Folder for the artifacts of all points."),
    resource=Flag(
        kind=str, default="params", metavar="NAME", panel=_POINTS,
        help=f"Resource to vary: {either(resource_names('additive', 'measured'))}; or that of a part, such as "
        "params(encoder.*).",
    ),
    points=Flag(
        kind=int, default=20, check=COUNT_OF_POINTS, panel=_POINTS,
        help=f"Number of budgets, at most {MOST_POINTS:,}, evenly spaced between the smallest that can be reached and "
        "the whole model.",
    ),
    between=Flag(
        kind=str | None, metavar="SHARES", panel=_POINTS, stands_for=("limits",),
        help="Lowest and highest budget as shares of the model, such as 20%,80%.",
    ),
    at=Flag(
        kind=list[str] | None, metavar="BOUND", panel=_POINTS,
        help="One budget, such as params<=25%, instead of --points and --between; may be repeated.",
    ),
    budget=budget_flag(
        "Bound that also applies at every point, such as macs<=50%; may be repeated.", *PLANNED, panel=_POINTS
    ),
    evaluate_points=Flag(
        kind=int | None, check=integer(1, optional=True), metavar="N", panel=OUTPUT,
        help="Number of points whose models are built and measured on the test images. By default all.",
    ),
    no_evaluate=Flag(kind=bool, default=False, panel=OUTPUT, help="Plan only, without measuring models."),
)  # fmt: skip
def sweep(given: Given, out: Output) -> None:
    """Plan for many budgets at once: the trade-off between size and predicted loss, and a family of models.

    The costs and losses of the candidates are computed once; after that, each budget takes seconds. With --data,
    the plans are applied one at a time and measured on the test images. With --cache, an interrupted sweep resumes.
    """
    source = given_source(given, given.model)
    budget, search = parse_budget(given.budget), search_options(given)
    if given.no_evaluate and given.evaluate_points is not None:
        raise ConfigError("--evaluate-points and --no-evaluate exclude each other. Leave one of them out.")
    if given.evaluate_points is not None and given.data is None:
        raise ConfigError(f"--evaluate-points {given.evaluate_points} needs images to measure on. Pass --data.")
    limits = None if given.between is None else parse_limits(given.between)
    points = [Budget.parse(text) for text in given.at] if given.at else given.points
    check_range(given.resource, points, limits)
    for one in (*(points if isinstance(points, list) else ()), budget):
        check_measurable(one)
    files = [check_file(path, (".html", ".json", ".md", ".csv")) for path in given.out or ()]
    work = open_work(source, given)
    result = rf.sweep(
        work.dense, work.example, resource=given.resource, points=points, limits=limits, budget=budget,
        calibration=work.calibration, evaluate=None if given.no_evaluate else work.metric,
        evaluate_points=given.evaluate_points, name=given.model,
        output=None if given.models is None else Destination(folder=Path(given.models), companions=source.texts),
        **search,
    )  # fmt: skip
    out.show(result.print)
    models = {} if given.models is None else {"models": given.models}
    for what, path in models.items():
        out.say(f"{what}: {path}")
    written = models | save_document(result, files, out)
    out.document({"command": "sweep", "files": written, "sweep": result.to_dict()})


def parse_limits(text: str) -> tuple[float, float]:
    """Return ``(0.2, 0.8)`` for ``"20%,80%"``."""
    shares = [float(parse_share(part) or 0) for part in text.split(",")]
    if len(shares) != 2 or not 0 < shares[0] < shares[1] < 1:
        raise ConfigError(f"--between must be two increasing shares, such as 20%,80%. Got {text!r} instead.")
    return shares[0], shares[1]
