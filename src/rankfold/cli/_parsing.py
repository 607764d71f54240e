"""Records that flags make up, and texts that are parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import rankfold as rf
from rankfold import strategies
from rankfold._config import build_config, changed, spelled, spelling
from rankfold._documents import parse_json
from rankfold._options import options_of
from rankfold.api import options as records
from rankfold.cli._command import Given
from rankfold.cli._loading import open_data
from rankfold.cli._options import HELD_OUT
from rankfold.cli._source import Source, names_code
from rankfold.cli._spelling import key_of
from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.records import Budget
from rankfold.tune import RECIPES, FineTune

_TUNE_FIELDS = ("epochs", "loss", "lr", "optimizer", "max_steps", "checkpoint", "checkpoint_every", "seed")

CONSTANTS = {"none": None, "None": None, "True": True, "False": False}
"""Python's spellings of JSON's null, true and false."""


def parse_share(text: str) -> Fraction | None:
    """Return ``"85%"`` or ``"0.85"`` as an exact number; None if it is neither."""
    try:
        number = Fraction(text.strip().removesuffix("%"))
    except (ValueError, ZeroDivisionError):
        return None
    return number / 100 if text.strip().endswith("%") else number


def parse_options(texts: Sequence[str] | None, *, flag: str = "--strategy-option") -> dict[str, Any]:
    """Return ``{"keep": 0.95}`` for ``["keep=0.95"]``; what is neither JSON nor a Python constant is a string."""
    result: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} must be KEY=VALUE, such as keep=0.95. Got {text!r} instead.")
        name = key.strip().replace("-", "_")
        try:
            result[name] = parse_json(value, source=flag)
        except CorruptArtifact:
            result[name] = CONSTANTS.get(value.strip(), value)
    return result


def parse_budget(texts: Sequence[str] | None) -> Budget | None:
    """Return one budget with the bounds of all texts; None without any."""
    return Budget(tuple(bound for text in texts for bound in Budget.parse(text).bounds)) if texts else None


def search_options(given: Given) -> dict[str, Any]:
    """Return the keyword arguments of a search; all checks that need no model are done.

    Raises
    ------
    RankfoldError
        If a name is unknown (the message suggests the nearest one), or a value cannot be parsed.
    """
    values: dict[str, Any] = {}
    for name, (_, option) in options_of(records.Search).items():
        if option.flag is not None and hasattr(given, name):
            parse = option.flag.parse
            values[name] = getattr(given, name) if parse is None else parse(getattr(given, name))
    chosen = parse_options(getattr(given, "strategy_option", None))
    if chosen:
        with spelling(key_of("--strategy-option")):
            values["strategy"] = strategies.get(values["strategy"], chosen)
    search = records.search_of(values)
    if hasattr(given, "data"):
        records.reconstruction(search.reconstruct, has_data=given.data is not None, data_aware=search.data_aware)
    return values


def recipe_of(
    given: Given, source: Source, *, checkpoint: str | None = None, base: FineTune | None = None
) -> FineTune | None:
    """Return the recipe without its data; None if neither epochs nor a recipe are requested.

    `base` replaces the default options, and so does a recipe by name, for flags that are not on the command line.

    Raises
    ------
    ConfigError
        If a value is out of range, or there is no data to train on.
    UnknownNameError
        If ``--finetune-option`` does not name a field of `FineTune`.
    """
    by_name = getattr(given, "recipe", None)
    if not given.epochs and (by_name is None or "epochs" in given.named):
        return None
    if source.data is None:
        what = f"--epochs {given.epochs}" if by_name is None else f"--recipe {by_name}"
        raise ConfigError(f"{what} needs data to train on. Pass --data, or leave {what.split()[0]} out.")
    options: dict[str, Any] = {name: getattr(given, name) for name in _TUNE_FIELDS if hasattr(given, name)}
    taken = {"data", *options} | ({"resume"} if hasattr(given, "checkpoint") else set())
    if by_name is not None:
        base = RECIPES[by_name].config
        options = {name: value for name, value in options.items() if name in given.named or name == "seed"}
    if hasattr(given, "checkpoint"):
        options |= {"resume": not given.restart, "checkpoint": given.checkpoint or checkpoint}
    others = parse_options(given.finetune_option, flag="--finetune-option")
    for key in others:
        if key in taken:
            raise ConfigError(f"--finetune-option does not take {key!r}. Use {spelled(key)} instead.")
    defaults = {} if base is None else changed(base)
    return build_config(FineTune, {**defaults, **options, **others}, owner="fine-tuning")


def with_data(recipe: FineTune | None, given: Given, source: Source) -> FineTune | None:
    """Return the recipe with the source's training data, and the metric on those that are held out."""
    if recipe is None:
        return None
    options: dict[str, Any] = {"shuffle": True, "augment": given.augment}
    hold_out, by_name = given.hold_out, getattr(given, "recipe", None)
    if source.data is not None and names_code(source.data):
        for flag, value in (("--augment", given.augment), ("--hold-out", hold_out)):
            if value:
                raise ConfigError(f"{flag} does not apply to {source.data!r}: a factory prepares its own data.")
        options, hold_out = {}, 0
    if hold_out is None:
        hold_out = HELD_OUT if recipe.keep == "best" else 0
    size = given.train_batch_size or (RECIPES[by_name].batch_size if by_name else None) or source.batch_size
    if hold_out:
        options["hold_out"] = hold_out
        recipe = replace(recipe, validate=rf.top1(open_data(source, "held_out", hold_out=hold_out)))
    return replace(recipe, data=open_data(source, "train", batch_size=size, limit=given.limit_train, **options))
