"""``rankfold finetune``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

import rankfold as rf
from rankfold._options import COUNT
from rankfold.api.realizing import Draft, Realizer
from rankfold.cli._command import Given, command
from rankfold.cli._loading import is_trained, open_work
from rankfold.cli._options import FLAGS, REQUIRED, TUNE, search_flags
from rankfold.cli._parsing import recipe_of, with_data
from rankfold.cli._session import Output
from rankfold.cli._source import Source, artifact_source
from rankfold.cli._writing import artifact_files, close, destination
from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.reporting import Report


@command(
    "rankfold finetune small --epochs 10 --lr 0.01 --out tuned",
    "artifact", "out", "tuning", "artifact_source", "seed",
    out=replace(FLAGS["out"], default=REQUIRED),
    epochs=replace(FLAGS["epochs"], default=5, check=COUNT, help="Passes over the training data."),
    seed=replace(search_flags()["seed"], panel=TUNE),
)  # fmt: skip
def finetune(given: Given, out: Output) -> None:
    """Train a compressed model, with the original as its teacher if its weights are known.

    To resume an interrupted run, repeat the same command. The output folder holds a checkpoint until the tuned model is
    written.
    """
    source = artifact_source(given, reads_data=True)
    to = destination(given.out, source)
    if to.folder.resolve() == Path(given.artifact).expanduser().resolve():
        raise ConfigError(f"--out {given.out!r} is the artifact itself, which is not overwritten. Pass another folder.")
    recipe = recipe_of(given, source, checkpoint=given.out)
    work = open_work(source, given)
    recipe = with_data(recipe, given, source)
    assert recipe is not None
    realizer = Realizer(
        model=work.dense, example_input=work.example, inventory=rf.inspect(work.dense, work.example),
        metric=work.metric, name=source.model,
    )  # fmt: skip
    draft = _draft(realizer, rf.load(given.artifact, work.dense), given.artifact, source)
    teacher = work.dense if is_trained(source) else None
    if teacher is None:
        out.say("the weights of the original are unknown: training without a teacher (see --weights)")
    tuned = realizer.tune(draft, recipe, teacher=teacher)
    if tuned.resumed_from:
        out.say(f"resumed from step {tuned.resumed_from} of {tuned.steps}")
    result = realizer.finish(draft).save(to)
    if given.checkpoint is None:
        (to.folder / "finetune.pt").unlink(missing_ok=True)
    files = artifact_files(to.folder)
    close(out, "finetune", result.report, files, resumed_from=tuned.resumed_from, steps=tuned.steps)


def _draft(realizer: Realizer, small: nn.Module, artifact: str, source: Source) -> Draft:
    """Return the model of an artifact with the values of its report that were measured on the same data and network."""
    try:
        report = Report.load(artifact)
    except CorruptArtifact:
        report = None  # an artifact may have no report
    rows = report.layers if report else ()
    errors = {row.name: row.measured_error for row in rows if row.measured_error is not None}
    notes = ["measured errors are those before fine-tuning"] if rows else []
    draft = Draft(model=small, errors=errors, notes=notes)
    remembered = Source.load(artifact) or source
    if report and realizer.metric is not None and replace(remembered, seed=source.seed) == source:
        for reported in report.metrics:
            if reported.name == realizer.metric.name:
                draft.values = {"dense": reported.dense, "compressed": reported.final}
    if not draft.values:
        draft.values = {"dense": realizer.value(realizer.model), "compressed": realizer.value(small)}
    return draft
