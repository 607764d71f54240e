"""All flags of the command line, apart from the options of a search (`rankfold.api.options.Search`)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from rankfold._options import COUNT, Flag, among, documented, integer, options_of, spellings
from rankfold.api import options as records
from rankfold.records import RESOURCES, resource_names
from rankfold.records.amounts import either
from rankfold.tune import RECIPES, FineTune
from rankfold.tune.config import CHECKS
from rankfold.zoo import DATA_SPECS
from rankfold.zoo.building import MOST_CLASSES

NETWORKS = "built-in name such as resnet20_cifar10, torchvision/NAME, timm/NAME, pkg.module:factory or file.py:factory."
DATA_HELP = f"Data set: {either(DATA_SPECS)}."

REQUIRED = inspect.Parameter.empty
"""Default of a required flag."""

HELD_OUT = 0.1
"""Share of the training images that are held out by default, to select the best epoch."""

PLANNED = ("additive", "measured", "peak")
"""Kinds of resources that a plan can meet without a metric."""

_ARTIFACT_SOURCE = "Model and data (by default those of the artifact)"
_SOURCE, SEARCH, TUNE, OUTPUT = "Model and data", "Compression", "Fine-tuning", "Output"


def _of_recipe(name: str, kind: Any, more: str = "", **details: Any) -> Flag:
    """Return the flag of a field of `FineTune`: default, check and the first sentence of its description."""
    text = documented(FineTune)[name][1].replace('"', "")
    sentence = text.partition(". ")[0].removesuffix(".") + "."
    default = FineTune.__dataclass_fields__[name].default
    flag = Flag(kind=kind, help=f"{sentence} {more}".strip(), default=default, check=CHECKS.get(name), panel=TUNE)
    return replace(flag, **details)


def budget_flag(text: str, *kinds: str, panel: str = SEARCH) -> Flag:
    """Return the flag of a budget with bounds on resources of these kinds, by default of all kinds."""
    resources = ", ".join(f"{name} ({RESOURCES[name].summary})" for name in resource_names(*kinds))
    names, text = ("--budget", "-b"), f"{text} params(encoder.*)<=50% bounds a part. Resources: {resources}."
    return Flag(kind=list[str] | None, names=names, metavar="BOUND", panel=panel, help=text)


FLAGS: dict[str, Flag] = {
    "model": Flag(kind=str, names=None, default=REQUIRED, help=f"Network: {NETWORKS}", metavar="MODEL"),
    "artifact": Flag(
        kind=str, names=None, default=REQUIRED, metavar="ARTIFACT",
        help="Folder written by compress, apply or finetune.",
    ),
    "original": Flag(
        kind=str | None, names=("--model",), metavar="MODEL", panel=_SOURCE,
        help=f"Network: {NETWORKS} By default the one that the artifact was made from.",
    ),
    "weights": Flag(
        kind=str | None, metavar="FILE", panel=_SOURCE, stands_for=("teacher",),
        help="File of trained weights (.safetensors or a torch state dict), or 'bundled' for those that rankfold "
        "includes. By default random weights.",
    ),
    "num_classes": Flag(
        kind=int | None, check=integer(1, MOST_CLASSES, optional=True), panel=_SOURCE,
        help="Number of outputs. By default that of the network.",
    ),
    "data": Flag(
        kind=str | None, metavar="SPEC", panel=_SOURCE, help=DATA_HELP, stands_for=("calibration", "evaluate", "metric")
    ),
    "trust_source": Flag(
        kind=bool, default=False, panel=_SOURCE,
        help="Run Python code (factories) that the artifact's source.json names.",
    ),
    "input_size": Flag(
        kind=str | None, metavar="SIZES", panel=_SOURCE, stands_for=("example_input",),
        help="Shape of an input with its batch dimension, such as 1,3,224,224.",
    ),
    "batch_size": Flag(
        kind=int | None, check=integer(1, 10**6, optional=True), panel=_SOURCE, help="Images per batch. By default 128."
    ),
    "limit_test": Flag(
        kind=int | None, check=integer(1, 10**9, optional=True), panel=_SOURCE,
        help="Maximum number of test images. By default all.",
    ),
    "device": Flag(
        kind=str, default="auto", metavar="DEVICE", panel=_SOURCE,
        help="Device of the models: auto (cuda if available), cpu, cuda or cuda:1.",
    ),
    "budget": budget_flag("Upper bound, such as params<=25%, params/4, macs<=0.5 or flash<=512KiB; may be repeated."),
    "strategy_option": Flag(
        kind=list[str] | None, metavar="KEY=VALUE", panel=SEARCH,
        help="Option of the strategy, such as rounds=2; may be repeated.",
    ),
    "calibration_images": Flag(
        kind=int, default=1024, check=COUNT, panel=SEARCH,
        help="Number of training images for calibration; their labels are not used.",
    ),
    "epochs": _of_recipe(
        "epochs", int, "With 0 there is no fine-tuning.", default=0, check=integer(0),
        names=("--epochs", "--finetune-epochs"), stands_for=("finetune",),
    ),
    "recipe": Flag(
        kind=str | None, metavar="NAME", panel=TUNE, check=among(RECIPES),
        help=f"Recipe of a paper: {either(tuple(RECIPES))}. It sets the epochs, loss, optimizer and "
        "schedule that other options do not set, and the batch size.",
    ),
    "loss": _of_recipe("loss", str, metavar="TERMS"),
    "lr": _of_recipe("lr", float | None, metavar="RATE"),
    "optimizer": _of_recipe("optimizer", str, metavar="NAME"),
    "finetune_option": Flag(
        kind=list[str] | None, metavar="KEY=VALUE", panel=TUNE,
        help="Any other field of FineTune, such as target=0.9 or mixed_precision=bf16; may be repeated.",
    ),
    "train_batch_size": Flag(
        kind=int | None, check=integer(1, 10**6, optional=True), panel=TUNE,
        help="Images per step. By default that of --recipe, otherwise --batch-size.",
    ),
    "limit_train": Flag(
        kind=int | None, check=integer(1, optional=True), panel=TUNE,
        help="Maximum number of training images. By default all.",
    ),
    "hold_out": Flag(
        kind=int | None, check=integer(0, optional=True), panel=TUNE,
        help="Training images that are left out of training: keep=best, target=VALUE and schedule=plateau follow the "
        f"accuracy on them. By default {HELD_OUT:.0%} of the images for keep=best, otherwise 0: they then follow the "
        "test images. Factories hold out nothing.",
    ),
    "max_steps": _of_recipe("max_steps", int | None),
    "augment": Flag(kind=bool, default=False, panel=TUNE, help="Apply random crops and, to color images, flips."),
    "checkpoint": _of_recipe("checkpoint", str | None, metavar="PATH"),
    "checkpoint_every": _of_recipe("checkpoint_every", int | None),
    "restart": Flag(
        kind=bool, default=False, panel=TUNE, help="Ignore any checkpoint and start over.", stands_for=("resume",)
    ),
    "out": Flag(
        kind=str, default="out", names=("--out", "-o"), metavar="FOLDER", panel=OUTPUT,
        help="Folder for the artifact and its report.",
    ),
    "as_json": Flag(
        kind=bool, default=False, names=("--json",), panel=OUTPUT,
        help="Print a single JSON document on standard output.",
    ),
    "quiet": Flag(
        kind=bool, default=False, names=("--quiet", "-q"), panel=OUTPUT,
        help="Print results only, without tables and progress.",
    ),
}  # fmt: skip

GROUPS: dict[str, tuple[str, ...]] = {
    "source": ("weights", "data", "input_size", "num_classes", "batch_size", "limit_test", "device", "seed"),
    "artifact_source": (
        "original", "weights", "data", "trust_source", "input_size", "num_classes", "batch_size", "limit_test",
        "device",
    ),
    "tuning": (
        "recipe", "epochs", "loss", "lr", "optimizer", "finetune_option", "train_batch_size", "limit_train",
        "hold_out", "max_steps", "augment", "checkpoint", "checkpoint_every", "restart",
    ),
}  # fmt: skip


def record_flags(record: type, panel: str | None = None) -> dict[str, Flag]:
    """Return the flags of a record's options: those that are available on the command line."""
    return {
        name: replace(
            option.flag,
            help=option.help,
            default=field.default,
            check=None if option.flag.parse else option.check,
            panel=panel,
        )
        for name, (field, option) in options_of(record).items()
        if option.flag is not None
    }


def search_flags() -> dict[str, Flag]:
    """Return the flags of a search, in the order of the help."""
    flags = record_flags(records.Search, SEARCH)
    first = {"budget": FLAGS["budget"], "strategy": flags["strategy"], "strategy_option": FLAGS["strategy_option"]}
    last = {"calibration_images": FLAGS["calibration_images"], "seed": replace(flags.pop("seed"), panel=_SOURCE)}
    return {**first, **flags, **last}


def flags_of(names: Sequence[str], own: dict[str, Flag]) -> dict[str, Flag]:
    """Return flags by name; ``"search"`` and the keys of `GROUPS` are names of groups, and `own` takes precedence."""
    search = search_flags()
    flags = dict[str, Flag]()
    for name in (*names, *own, "as_json", "quiet"):
        if name == "search":
            flags |= search
        for one in GROUPS.get(name, () if name == "search" else (name,)):
            flag = own.get(one) or search.get(one) or FLAGS[one]
            if name == "artifact_source":
                flag = replace(flag, panel=_ARTIFACT_SOURCE, help=flag.help.partition(" By default")[0])
            flags[one] = flag
    return flags


def parameter(name: str, flag: Flag) -> inspect.Parameter:
    """Return a flag as a parameter of a function, which typer reads."""
    number = flag.kind in (int, int | None)
    shown: dict[str, Any] = {"help": flag.help, "metavar": flag.metavar or ("N" if number else None)}
    if flag.panel is not None:
        shown["rich_help_panel"] = flag.panel
    if flag.names is None:
        info = typer.Argument(**shown, show_default=False)
    else:
        info = typer.Option(*spellings(name, flag), **shown)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=flag.default, annotation=Annotated[flag.kind, info])
