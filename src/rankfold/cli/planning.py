"""``rankfold plan`` and ``rankfold apply``."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

PLAN_EXAMPLE = 'Example: rankfold plan torchvision/resnet18 --budget "params<=50%" --out plan.json'
APPLY_EXAMPLE = "Example: rankfold apply lenet5_mnist5k --weights bundled --plan plan.json --data mnist5k --out small"

PlanOut = Annotated[
    str,
    typer.Option("--out", "-o", help="File of the plan, ending in .json.", metavar="FILE", rich_help_panel="Output"),
]
PlanFile = Annotated[
    str,
    typer.Option("--plan", help="A plan, edited or not, or an artefact's folder.", metavar="FILE", show_default=False),
]


@command
def plan(
    model: o.Model,
    out: PlanOut,
    weights: o.Weights = None,
    data: o.Data = None,
    budget: o.Budget = None,
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
    input_size: o.InputSize = None,
    num_classes: o.Classes = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Choose method and ranks of every layer, and write them to a file that you can read and edit.

    Nothing is changed: `rankfold apply` does what the plan says.
    """
    import rankfold as rf
    from rankfold.cli._loading import check_name, open_data, open_example, open_model, pick_device, warn_untrained
    from rankfold.cli._parsing import planning_options
    from rankfold.cli._road import predict
    from rankfold.cli._source import source_of
    from rankfold.cli._writing import check_file, close

    with session(as_json=as_json, quiet=quiet) as printer:
        source = source_of(
            model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, batch_size=batch_size,
            seed=seed,
        )  # fmt: skip
        planning = planning_options(
            budget=budget, strategy=strategy, option=option, methods=methods, include=include, exclude=exclude,
            keep_first_last=keep_first_last, override=override, rank_multiple=rank_multiple, gauge=gauge,
            storage=storage,
            data_aware=data_aware, cache=cache, seed=seed,
        )  # fmt: skip
        place = pick_device(device)
        file = check_file(out, (".json",))
        check_name(source)
        warn_untrained(source)
        calibration = None if data is None else open_data(source, "calibration", limit=calibration_images)
        dense = open_model(source, place)
        example = open_example(source, calibration)
        made = rf.plan(dense, example, calibration=calibration, **planning)
        made.save(file)
        selection = {key: planning[key] for key in ("include", "exclude", "keep_first_last")}
        report = predict(rf.inspect(dense, example, **selection), made, model)
        close(printer, "plan", report, {"plan": file}, plan=json.loads(made.to_json()))


@command
def apply(
    model: o.Model,
    plan_file: PlanFile,
    out: o.Out = "out",
    weights: o.Weights = None,
    data: o.Data = None,
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
    """Do what a plan says, and save the compressed model.

    With --data the factors are found on unlabelled training images, and the accuracy is measured before and after.
    """
    import rankfold as rf
    from rankfold.api.applying import apply_mode, check_reconstruct
    from rankfold.api.compressing import measured_errors
    from rankfold.calibration import collect_moments
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
    from rankfold.cli._parsing import reconstruction
    from rankfold.cli._road import Finished, finish
    from rankfold.cli._source import source_of
    from rankfold.cli._writing import artifact_files, check_folder, close
    from rankfold.storage.state import check_state
    from rankfold.surgery import check_plan, plan_of

    with session(as_json=as_json, quiet=quiet) as printer:
        start = time.perf_counter()
        source = source_of(
            model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, batch_size=batch_size,
            limit_test=limit_test, seed=seed,
        )  # fmt: skip
        chosen = rf.Plan.load(plan_file)
        how = reconstruction(reconstruct, data)
        mode, options = check_reconstruct(how, data is not None)
        if how is None and not data_aware:
            mode = "weights"
        place = pick_device(device)
        folder = check_folder(out)
        check_name(source)
        warn_untrained(source)
        test = open_test(source)
        calibration = None if data is None else open_data(source, "calibration", limit=calibration_images)
        dense = open_model(source, place)
        layers = check_plan(dense, chosen)
        check_state(dense)
        example = open_example(source, test)
        inventory = rf.inspect(dense, example)
        metric = pick_metric(test, lambda: dense)
        values = {} if metric is None else {"dense": rf.evaluate(dense, metric)}
        moments = None
        if calibration is not None and mode == "data":
            moments = collect_moments(dense, calibration, [layers[name] for name in chosen.factored])
        applied = apply_mode(
            dense, chosen, calibration, mode, moments=moments, sequential=options, example_input=example
        )
        small = applied.model
        if metric is not None:
            values["compressed"] = rf.evaluate(small, metric)
        report = finish(
            Finished(
                dense=dense,
                small=small,
                plan=plan_of(small),
                inventory=inventory,
                example=example,
                metric=metric,
                values=values,
                errors=applied.errors or measured_errors(small, dense, moments),
                notes=[*([applied.renewed.note] if applied.renewed is not None else []), *applied.notes],
                timings={"apply": time.perf_counter() - start},
            ),
            source,
            folder,
        )
        close(printer, "apply", report, artifact_files(folder))
