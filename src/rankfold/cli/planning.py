"""``rankfold plan`` and ``rankfold apply``."""

from __future__ import annotations

import json

import rankfold as rf
from rankfold._options import Flag
from rankfold.api.options import reconstruction
from rankfold.api.realizing import predict
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._options import OUTPUT, PLANNED, REQUIRED, budget_flag
from rankfold.cli._parsing import parse_budget, search_options
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import artifact_files, check_file, close, destination


@command(
    'rankfold plan torchvision/resnet18 --budget "params<=50%" --out plan.json',
    "model", "out", "search", "weights", "data", "input_size", "num_classes", "batch_size", "device",
    budget=budget_flag(
        "Upper bound, such as params<=25%, params/4, macs<=0.5 or flash<=512KiB; may be repeated.", *PLANNED
    ),
    out=Flag(
        kind=str, default=REQUIRED, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File for the plan, ending in .json.",
    ),
)  # fmt: skip
def plan(given: Given, out: Output) -> None:
    """Choose the method and ranks of each layer, and write them to a file that you can read and edit.

    The network is not changed; `rankfold apply` applies the plan. A bound on accuracy needs `rankfold compress`.
    """
    source = given_source(given, given.model)
    budget, search = parse_budget(given.budget), search_options(given)
    file = check_file(given.out, (".json",))
    work = open_work(source, given)
    planned = rf.plan(work.dense, work.example, budget=budget, calibration=work.calibration, **search)
    planned.save(file)
    selection = {key: search[key] for key in ("include", "exclude", "keep_first_last")}
    report = predict(rf.inspect(work.dense, work.example, **selection), planned, given.model)
    close(out, "plan", report, {"plan": file}, plan=json.loads(planned.to_json()))


@command(
    "rankfold apply lenet5_mnist5k --weights bundled --plan plan.json --data mnist5k --out small",
    "model", "plan", "out", "calibration_images", "data_aware", "reconstruct", "source",
    plan=Flag(kind=str, default=REQUIRED, metavar="FILE", help="A plan file, edited or not, or an artifact's folder."),
)  # fmt: skip
def apply(given: Given, out: Output) -> None:
    """Apply a plan, and save the compressed model.

    With --data, factors are computed from unlabeled training images, and accuracy is measured before and after.
    """
    source = given_source(given, given.model)
    chosen = rf.Plan.load(given.plan)
    how = reconstruction(given.reconstruct, has_data=given.data is not None, data_aware=given.data_aware)
    to = destination(given.out, source)
    work = open_work(source, given)
    result = rf.realize(
        work.dense, work.example, chosen, calibration=work.calibration, reconstruct=how.mode, evaluate=work.metric,
        output=to, name=given.model,
    )  # fmt: skip
    close(out, "apply", result.report, artifact_files(to.folder))
