"""``rankfold compress``."""

from __future__ import annotations

import rankfold as rf
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._parsing import parse_budget, recipe_of, search_options, with_data
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import artifact_files, close, destination


@command(
    "rankfold compress resnet20_cifar10 --weights resnet20.safetensors --data cifar10:data/cifar10 "
    '--budget "params<=50%" --out small',
    "model", "out", "search", "tuning", "source",
)  # fmt: skip
def compress(given: Given, out: Output) -> None:
    """Compress a network: plan, apply, fine-tune, save, measure the saved model, report.

    With --data, accuracy is measured on the test images before and after, and factors are computed from unlabeled
    training images. Without --data, an example input is enough.
    """
    source = given_source(given, given.model)
    budget, search = parse_budget(given.budget), search_options(given)
    recipe = recipe_of(given, source)
    to = destination(given.out, source)
    work = open_work(source, given)
    result = rf.compress(
        work.dense, work.example, budget=budget, calibration=work.calibration, evaluate=work.metric,
        finetune=with_data(recipe, given, source), output=to, name=given.model, **search,
    )  # fmt: skip
    close(out, "compress", result.report, artifact_files(to.folder))
