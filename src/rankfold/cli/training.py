"""``rankfold train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

import rankfold as rf
from rankfold import zoo
from rankfold._files import write_atomic
from rankfold._options import COUNT, Flag
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_data, open_model, pick_device
from rankfold.cli._options import FLAGS, GROUPS, OUTPUT, REQUIRED
from rankfold.cli._parsing import recipe_of, with_data
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import check_file
from rankfold.reporting import MetricValue
from rankfold.reporting.sections import Content
from rankfold.reporting.summary import epoch_table
from rankfold.reporting.terminal import draw
from rankfold.reporting.words import metric as in_words
from rankfold.reporting.words import seconds as duration
from rankfold.storage.state import check_state
from rankfold.storage.weights import write_weights
from rankfold.tune import FROM_SCRATCH, RECIPES

# Without a teacher there is one loss. --epochs of compress has a second spelling, and a default of 0.
_RECIPE = {name: replace(FLAGS[name], panel="Training") for name in GROUPS["tuning"] if name not in ("loss", "recipe")}
_RECIPE["epochs"] = Flag(
    kind=int, default=FROM_SCRATCH.epochs, check=COUNT, panel="Training", help="Passes over the training data."
)
_RECIPE["optimizer"] = replace(_RECIPE["optimizer"], default=FROM_SCRATCH.optimizer)


@command(
    "rankfold train lenet5_mnist5k --data mnist5k --epochs 20 --lr 0.001 --out lenet5.safetensors",
    "model", "out", *_RECIPE, "data", "input_size", "num_classes", "batch_size", "limit_test", "device", "seed",
    out=Flag(
        kind=str, default=REQUIRED, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File for the weights, ending in .safetensors.",
    ),
    data=replace(FLAGS["data"], kind=str, default=REQUIRED),
    batch_size=replace(
        FLAGS["batch_size"], kind=int, default=RECIPES["from-scratch"].batch_size, help="Images per batch."
    ),
    **_RECIPE,
)  # fmt: skip
def train(given: Given, out: Output) -> None:
    """Train a network from random weights, and save its weights for --weights of the other commands.

    By default the recipe is that of the similarity paper (Kokhazadeh et al. 2025): the learning rate falls to a tenth
    when accuracy on the test images, measured after each epoch, has not improved for more than 10 epochs. With
    --hold-out, it follows training images that are left out of training. The weights are those of the last epoch.
    --finetune-option keep=best saves those of the epoch with the best accuracy on held-out images, and
    --finetune-option schedule=cosine follows a cosine instead.

    To resume an interrupted run, repeat the same command. A checkpoint is next to the output file until the weights are
    written.
    """
    source = given_source(given, given.model)
    file = check_file(given.out, (".safetensors",))
    checkpoint = file.with_suffix(".checkpoint.pt")
    recipe = recipe_of(given, source, checkpoint=str(checkpoint), base=FROM_SCRATCH)
    device = pick_device(given.device)
    zoo.entry(source.model)
    metric = rf.top1(open_data(source, "test", limit=source.limit_test))
    recipe = with_data(recipe, given, source)
    assert recipe is not None
    model = open_model(source, device)
    check_state(model)
    tuned = rf.finetune_(model, recipe, metric=metric)
    if tuned.resumed_from:
        out.say(f"resumed from step {tuned.resumed_from} of {tuned.steps}")
    _write(model, file)
    if given.checkpoint is None:
        checkpoint.unlink(missing_ok=True)
    value = rf.evaluate(open_model(replace(source, weights=str(file)), device), metric)
    seconds = sum(epoch.seconds for epoch in tuned.history)
    shown = in_words(MetricValue(name=metric.name, dense=value), value)
    table = epoch_table(tuned.history, title=f"Training, {duration(seconds)}", brief=True)
    out.show(lambda console: draw(Content(sections=[table]), console))
    where = f"({metric.samples:,} samples), weights of epoch {tuned.kept_epoch}"
    out.result(shown if given.quiet else f"{metric.name} of {given.model}: {shown} {where}")
    out.say(f"weights:   {file}")
    out.document(
        {"command": "train", "files": {"weights": str(file)}, "metric": metric.name, "value": value,
         "samples": metric.samples, "seconds": seconds, **tuned.to_dict()}
    )  # fmt: skip


def _write(model: nn.Module, file: Path) -> None:
    """Write a model's state dict; a tied tensor is written under each of its names."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomic(file, lambda temporary: write_weights(temporary, tensors, {"format": "pt"}))
