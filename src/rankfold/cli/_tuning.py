"""A `FineTune` from flags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankfold._config import build_config
from rankfold.cli._command import Given
from rankfold.cli._loading import open_data
from rankfold.cli._parsing import parse_options
from rankfold.cli._source import Source
from rankfold.errors import ConfigError
from rankfold.tune import FineTune

_FIELDS = ("epochs", "loss", "lr", "optimizer", "max_steps", "checkpoint", "checkpoint_every", "seed")


def recipe_of(given: Given, source: Source, *, checkpoint: str | None = None) -> FineTune | None:
    """Return the recipe without its data; None if no epochs are asked for.

    Raises
    ------
    ConfigError
        If a value is out of range, or there is no data to train on.
    UnknownNameError
        If ``--finetune-option`` names no field of `FineTune`.
    """
    if not given.epochs:
        return None
    if source.data is None:
        raise ConfigError(f"--epochs {given.epochs} needs data to train on. Give --data, or leave --epochs out.")
    options: dict[str, Any] = {name: getattr(given, name) for name in _FIELDS}
    options |= {"resume": not given.restart, "checkpoint": given.checkpoint or checkpoint}
    others = parse_options(given.finetune_option, flag="--finetune-option")
    for key in others:
        if key in options or key == "data":
            raise ConfigError(f"--finetune-option {key}=... has an option of its own: --{key.replace('_', '-')}.")
    return build_config(FineTune, {**options, **others}, owner="fine-tuning")


def with_data(recipe: FineTune | None, given: Given, source: Source) -> FineTune | None:
    """Return the recipe with the source's training data."""
    if recipe is None:
        return None
    options: dict[str, Any] = {} if _own_loader(source) else {"shuffle": True, "augment": given.augment}
    if given.augment and not options:
        raise ConfigError(f"--augment is not for {source.data!r}: a factory augments by itself.")
    size = given.train_batch_size or source.batch_size
    return replace(recipe, data=open_data(source, "train", batch_size=size, limit=given.limit_train, **options))


def _own_loader(source: Source) -> bool:
    """Whether the data is a factory of the user's, which shuffles and augments by itself."""
    kind = (source.data or "").partition(":")[0]
    return kind not in ("mnist5k", "cifar10", "imagefolder", "npz")
