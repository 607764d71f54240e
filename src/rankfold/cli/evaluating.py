"""``rankfold evaluate``."""

from __future__ import annotations

import os
from dataclasses import replace

import rankfold as rf
from rankfold import zoo
from rankfold._options import COUNT, Flag
from rankfold.cli._command import Given, command
from rankfold.cli._loading import is_trained, open_data, open_model, pick_device, pick_metric, warn_untrained
from rankfold.cli._options import FLAGS, NETWORKS
from rankfold.cli._session import Output
from rankfold.cli._source import Source, artifact_source, given_source
from rankfold.errors import ConfigError, CorruptArtifact, UnknownNameError
from rankfold.reporting import MetricValue, Report
from rankfold.reporting.words import metric as in_words


@command(
    "rankfold evaluate small",
    "artifact", "artifact_source", "top", "agreement",
    artifact=replace(FLAGS["artifact"], help=f"An artifact's folder, or a network: {NETWORKS}", metavar="TARGET"),
    top=Flag(
        kind=int, default=1, check=COUNT, metavar="K", stands_for=("k",),
        help="Count a prediction as correct if the label is among the K highest scores.",
    ),
    agreement=Flag(
        kind=bool, default=False,
        help="Measure the share of predictions that equal the original's, which needs no labels.",
    ),
)  # fmt: skip
def evaluate(given: Given, out: Output) -> None:
    """Measure a compressed model or a dense network on the test images.

    An artifact records its network and data, so its folder is sufficient; options take precedence. Python code that the
    artifact names is not run unless you name it yourself or pass --trust-source.
    """
    target = given.artifact
    artifact = os.path.exists(target) or target.endswith(("/", "\\"))
    if not artifact and given.original is not None:
        raise ConfigError(f"--model requires an artifact, but there is no folder {target!r}.")
    source = artifact_source(given, reads_data=True) if artifact else given_source(given, target)
    device = pick_device(given.device)
    try:
        zoo.entry(source.model)
    except UnknownNameError as error:
        if artifact:
            raise
        raise ConfigError(f"{error} There is no folder {target!r} either.") from None
    test = open_data(source, "test", limit=source.limit_test)
    if not artifact:
        warn_untrained(source)
    dense = open_model(source, device)
    measured = rf.load(target, dense) if artifact else dense
    metric = rf.agreement(dense, test) if given.agreement else pick_metric(test, lambda: dense, given.top)
    assert metric is not None
    if metric.name == "agreement":
        _check_reference(artifact, source)
    value = rf.evaluate(measured, metric)
    name = metric.name
    shown = in_words(MetricValue(name=name, dense=value), value)
    out.result(shown if given.quiet else f"{name} of {target}: {shown} ({metric.samples:,} samples)")
    if artifact and given.data is None and given.limit_test is None:
        _compare(out, target, name, value)
    out.document(
        {"command": "evaluate", "target": target, "metric": name, "value": value, "samples": metric.samples,
         "data": source.data}
    )  # fmt: skip


def _check_reference(artifact: bool, source: Source) -> None:
    if not artifact:
        raise ConfigError(
            f"agreement compares an artifact with its original, but {source.model!r} is an original. "
            "Pass an artifact's folder, or data with labels."
        )
    if not is_trained(source):
        raise ConfigError("agreement needs the original's weights. Pass --weights.")


def _compare(out: Output, target: str, name: str, value: float) -> None:
    """Print whether the report next to the artifact has the same value."""
    try:
        report = Report.load(target)
    except CorruptArtifact:
        return  # an artifact may have no report
    for reported in report.metrics:
        if reported.name == name and reported.final == value:
            out.say("the report has the same value")
        elif reported.name == name:
            out.say(f"the report has {reported.final!r}, this run {value!r}: another machine, device or batch size?")
