"""``rankfold sweep``: plans for a whole range of budgets from one table."""

from __future__ import annotations

from typing import Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

EXAMPLE = "Example: rankfold sweep lenet5_mnist5k --weights bundled --data mnist5k --points 20 --out sweep.html"

_POINTS = "Which budgets"
SUFFIXES = (".html", ".json", ".md", ".csv")

Resource = Annotated[
    str, typer.Option("--resource", help="What is varied: params, macs, flash, fm or memory.", rich_help_panel=_POINTS)
]
Points = Annotated[
    int,
    typer.Option("--points", help="How many budgets, evenly spaced from the least that can be reached.", min=2,
                 rich_help_panel=_POINTS),
]  # fmt: skip
Between = Annotated[
    str | None,
    typer.Option("--between", help="Shares of the model that the budgets lie between, such as 20%,80%.",
                 metavar="SHARES", rich_help_panel=_POINTS),
]  # fmt: skip
At = Annotated[
    list[str] | None,
    typer.Option("--at", help="One budget, in the place of --points and --between; may be repeated.", metavar="BOUND",
                 rich_help_panel=_POINTS),
]  # fmt: skip
Fixed = Annotated[
    list[str] | None,
    typer.Option("--budget", "-b", help="Bound that holds at every point besides, such as macs<=50%; may be repeated.",
                 metavar="BOUND", rich_help_panel=_POINTS),
]  # fmt: skip
Evaluate = Annotated[
    int | None,
    typer.Option("--evaluate", help="How many points are applied and measured on the test images; all if left out.",
                 min=1, metavar="N", rich_help_panel="Output"),
]  # fmt: skip
NoEvaluate = Annotated[
    bool, typer.Option("--no-evaluate", help="Plan only: measure no model.", rich_help_panel="Output")
]
Outs = Annotated[
    list[str] | None,
    typer.Option("--out", "-o", help="File ending in .html, .json, .md or .csv; may be repeated.", metavar="FILE",
                 rich_help_panel="Output"),
]  # fmt: skip
Models = Annotated[
    str | None,
    typer.Option("--models", help="Folder for an artefact of every point.", metavar="FOLDER", rich_help_panel="Output"),
]


@command
def sweep(
    model: o.Model,
    out: Outs = None,
    models: Models = None,
    weights: o.Weights = None,
    data: o.Data = None,
    resource: Resource = "params",
    points: Points = 20,
    between: Between = None,
    at: At = None,
    budget: Fixed = None,
    evaluate: Evaluate = None,
    no_evaluate: NoEvaluate = False,
    strategy: o.Strategy = o.STRATEGY,
    methods: o.Methods = None,
    option: o.Option = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    keep_first_last: o.KeepFirstLast = False,
    override: o.Override = None,
    rank_multiple: o.RankMultiple = None,
    gauge: o.Gauge = False,
    storage: o.Storage = None,
    cache: o.Cache = None,
    calibration_images: o.CalibrationImages = 1024,
    data_aware: o.DataAware = True,
    reconstruct: o.Reconstruct = None,
    input_size: o.InputSize = None,
    num_classes: o.Classes = None,
    batch_size: o.BatchSize = None,
    limit_test: o.LimitTest = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Plan for many budgets at once: the front of size against predicted damage, and a family of models.

    Candidates are priced and measured once; each budget is then a matter of a moment. With --data the plans are
    applied one at a time and measured on the test images. With --cache a sweep that was killed goes on where it was.
    """
    import rankfold as rf
    from rankfold.api.checks import check_measurable
    from rankfold.api.sweeping import check_range
    from rankfold.cli._loading import (
        check_name,
        open_data,
        open_example,
        open_model,
        open_test,
        pick_device,
        pick_metric,
        warn_untrained,
    )
    from rankfold.cli._parsing import planning_options, reconstruction
    from rankfold.cli._source import source_of
    from rankfold.cli._writing import check_file
    from rankfold.errors import ConfigError
    from rankfold.records import Budget

    with session(as_json=as_json, quiet=quiet) as printer:
        source = source_of(
            model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, batch_size=batch_size,
            limit_test=limit_test, seed=seed,
        )  # fmt: skip
        planning = planning_options(
            budget=budget, strategy=strategy, option=option, methods=methods, include=include, exclude=exclude,
            keep_first_last=keep_first_last, override=override, rank_multiple=rank_multiple, gauge=gauge,
            storage=storage, cache=cache,
            data_aware=data_aware, seed=seed,
        )  # fmt: skip
        if no_evaluate and evaluate is not None:
            raise ConfigError("--evaluate and --no-evaluate contradict each other. Leave one of them out.")
        if evaluate is not None and data is None:
            raise ConfigError(f"--evaluate {evaluate} needs images to measure on. Give --data.")
        limits = None if between is None else parse_limits(between)
        check_range(resource, points, limits)
        budgets = None if not at else [Budget.parse(text) for text in at]
        for one in (*(budgets or ()), planning["budget"]):
            if one is not None:
                check_measurable(one)
        files = [check_file(path, SUFFIXES) for path in out or ()]
        how = reconstruction(reconstruct, data)
        place = pick_device(device)
        check_name(source)
        warn_untrained(source)
        test = open_test(source)
        calibration = None if data is None else open_data(source, "calibration", limit=calibration_images)
        dense = open_model(source, place)
        found = rf.sweep(
            dense,
            open_example(source, test),
            resource=resource,
            points=points,
            limits=limits,
            budgets=budgets,
            calibration=calibration,
            reconstruct=how,
            evaluate=None if no_evaluate else pick_metric(test, lambda: dense),
            evaluate_points=evaluate,
            output=models,
            name=model,
            **planning,
        )
        printer.show(found.print)
        if models is not None:
            for point in found.points:
                if point.folder is not None:
                    source.attach(point.folder)
            printer.say(f"models: {models}")
        for file in files:
            found.save(file)
            printer.say(f"{file.suffix[1:]}: {file}")
        written = {file.suffix[1:]: str(file) for file in files} | ({} if models is None else {"models": models})
        printer.document({"command": "sweep", "files": written, "sweep": found.to_dict()})


def parse_limits(text: str) -> tuple[float, float]:
    """Return ``(0.2, 0.8)`` for ``"20%,80%"``.

    Raises
    ------
    ConfigError
        If the text is not two growing shares.
    """
    from rankfold.errors import ConfigError

    try:
        shares = [float(p.strip().removesuffix("%")) / (100 if p.strip().endswith("%") else 1) for p in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 2 or not 0 < shares[0] < shares[1] < 1:
        raise ConfigError(f"--between must be two growing shares, such as 20%,80%. Got {text!r} instead.")
    return shares[0], shares[1]
