"""A `FineTune` from options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankfold._config import build_config
from rankfold.cli._loading import open_data
from rankfold.cli._parsing import parse_options
from rankfold.cli._source import Source
from rankfold.errors import ConfigError
from rankfold.tune import FineTune


def tuning_options(
    *,
    epochs: int | None,
    loss: str,
    lr: float | None,
    optimizer: str,
    max_steps: int | None,
    checkpoint: str | None,
    checkpoint_every: int | None,
    seed: int,
    data: str | None,
    resume: bool = True,
    extra: list[str] | None = None,
) -> FineTune | None:
    """Return the config without its data; None if no epochs are asked for.

    Raises
    ------
    ConfigError
        If a value is out of range, or there is no data to train on.
    UnknownNameError
        If `extra` (``KEY=VALUE`` texts) names no field of `FineTune`.
    """
    if not epochs:
        return None
    if data is None:
        raise ConfigError(f"--epochs {epochs} needs data to train on. Give --data, or leave --epochs out.")
    options: dict[str, Any] = {
        "epochs": epochs, "loss": loss, "lr": lr, "optimizer": optimizer, "max_steps": max_steps,
        "checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "seed": seed, "resume": resume,
    }  # fmt: skip
    others = parse_options(extra, flag="--finetune-option")
    for key in others:
        if key in options or key == "data":
            raise ConfigError(f"--finetune-option {key}=... has an option of its own: --{key.replace('_', '-')}.")
    return build_config(FineTune, {**options, **others}, owner="fine-tuning")


def with_data(
    config: FineTune | None, source: Source, *, batch_size: int | None, limit: int | None, augment: bool
) -> FineTune | None:
    """Return the config with the source's training data."""
    if config is None:
        return None
    options: dict[str, Any] = {} if _own_loader(source) else {"shuffle": True, "augment": augment}
    if augment and not options:
        raise ConfigError(f"--augment is not for {source.data!r}: a factory augments by itself.")
    loader = open_data(source, "train", batch_size=batch_size or source.batch_size, limit=limit, **options)
    return replace(config, data=loader)


def _own_loader(source: Source) -> bool:
    """Whether the data is a factory of the user's, which shuffles and augments by itself."""
    kind = (source.data or "").partition(":")[0]
    return kind not in ("mnist5k", "cifar10", "imagefolder", "npz")
