"""``rankfold evaluate``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import Output, command, session

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from rankfold.cli._source import Source

EXAMPLE = "Example: rankfold evaluate small"

Target = Annotated[
    str,
    typer.Argument(help=f"An artefact's folder, or a network. {o.MODEL_HELP}", metavar="TARGET", show_default=False),
]
TopK = Annotated[int, typer.Option("--top", help="How many of the best classes count.", min=1)]
Agreement = Annotated[
    bool, typer.Option("--agreement", help="Share of predictions that equal the original's; needs no labels.")
]


@command
def evaluate(
    target: Target,
    model: o.ModelOption = None,
    weights: o.Weights = None,
    data: o.Data = None,
    trust_source: o.TrustSource = False,
    top: TopK = 1,
    with_original: Agreement = False,
    num_classes: o.Classes = None,
    input_size: o.InputSize = None,
    batch_size: o.BatchSize = None,
    limit_test: o.LimitTest = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure a compressed model, or a dense one, on the test images.

    An artefact remembers its network and its data, so its folder is all that is needed; options take precedence over
    what it remembers. Python code that it names is not run unless you name it again or pass --trust-source.
    """
    import rankfold as rf
    from rankfold.cli._loading import check_name, open_data, open_model, pick_device, pick_metric, warn_untrained
    from rankfold.cli._source import artifact_source, source_of
    from rankfold.errors import ConfigError
    from rankfold.evaluation import metric_name
    from rankfold.reporting import MetricValue
    from rankfold.reporting.words import metric as in_words

    with session(as_json=as_json, quiet=quiet) as printer:
        artifact = os.path.exists(target) or target.endswith(("/", "\\"))
        options: dict[str, Any] = {
            "weights": weights, "num_classes": num_classes, "data": data, "input_size": input_size,
            "batch_size": batch_size, "limit_test": limit_test,
        }  # fmt: skip
        if not artifact and model is not None:
            raise ConfigError(f"--model goes with an artefact, but there is no folder {target!r}.")
        if artifact:
            source = artifact_source(target, model=model, trust=trust_source, **options)
        else:
            source = source_of(target, **options)
        place = pick_device(device)
        check_name(source)
        if not artifact:
            warn_untrained(source)
        test = open_data(source, "test", limit=source.limit_test)
        fresh = open_model(source, place)
        measured = rf.load(target, fresh) if artifact else fresh
        metric = rf.agreement(fresh, test) if with_original else pick_metric(test, lambda: fresh, top)
        assert metric is not None
        _check_reference(metric, artifact, source)
        value = rf.evaluate(measured, metric)
        name = metric_name(metric)
        shown = in_words(MetricValue(name=name, dense=value), value)
        printer.result(shown if quiet else f"{name} of {target}: {shown}")
        if artifact and data is None and limit_test is None:
            _compare(printer, target, name, value)
        printer.document({"command": "evaluate", "target": target, "metric": name, "value": value, "data": source.data})


def _check_reference(metric: Callable[[nn.Module], float], artifact: bool, source: Source) -> None:
    from rankfold.cli._loading import is_trained
    from rankfold.errors import ConfigError
    from rankfold.evaluation import metric_name

    if metric_name(metric) != "agreement":
        return
    if not artifact:
        raise ConfigError(
            f"agreement compares an artefact with its original, but {source.model!r} is the original itself. "
            "Give an artefact's folder, or data with labels."
        )
    if not is_trained(source):
        raise ConfigError("agreement needs the original's weights. Give --weights.")


def _compare(printer: Output, target: str, name: str, value: float) -> None:
    """Say whether the report beside the artefact has the same value."""
    from rankfold.errors import CorruptArtifact
    from rankfold.reporting import Report

    try:
        report = Report.load(target)
    except CorruptArtifact:
        return  # an artefact needs no report
    for known in report.metrics:
        if known.name == name and known.final == value:
            printer.say("the report says the same")
        elif known.name == name:
            printer.say(f"the report says {known.final!r}, this run {value!r}: another machine, device or batch size?")
