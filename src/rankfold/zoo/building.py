"""`create`: a network by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import resources

import torch
from torch import nn

from rankfold._config import Code, spelled
from rankfold.errors import ConfigError
from rankfold.zoo.entries import entry
from rankfold.zoo.factories import is_factory, load_factory
from rankfold.zoo.weight_files import load_weights

MOST_CLASSES = 10**6
"""Upper limit of `num_classes`, far above that of any data set."""


def create(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a network by name, in eval mode. Nothing is downloaded.

    Parameters
    ----------
    name : str
        One of `names()`; ``"torchvision/<name>"`` or ``"timm/<name>"`` for any network of these packages; or your own
        function as ``"pkg.module:factory"`` or ``"path/to/file.py:factory"``, which is called without arguments (with
        ``num_classes`` if given).
    weights : path, "bundled" or None
        A ``.safetensors`` file or a torch file with a state dict (read with ``weights_only=True``); ``"bundled"`` for
        the weights included in rankfold; None for random weights.
    num_classes : int, optional
        Number of outputs. By default that of the network.
    seed : int, optional
        Seed of the random weights; torch's global generators are left untouched. Without it the weights are drawn from
        the global generator, as by any torch constructor.

    Raises
    ------
    UnknownNameError
        If there is no such network; the message suggests the nearest name.
    ConfigError
        If `num_classes` is not allowed, or the network has no bundled weights.
    RankfoldError, CorruptArtifact, ModelError
        If the weights file is missing, is damaged, or does not fit the network.
    MissingExtra
        If torchvision or timm is needed and not installed.
    """
    info = entry(name)
    if num_classes is not None and not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes must be at least 1 and at most {MOST_CLASSES:,}. Got {num_classes} instead.")
    if weights is not None and seed is None:
        seed = 0  # the random weights are replaced, so they need not advance the global generator
    if is_factory(name):
        load_factory(name)  # not seeded: only the first import would draw random numbers
    with nullcontext() if seed is None else seeded(seed):
        model = info.build(num_classes)
    if weights == "bundled":
        if info.bundled is None:
            raise ConfigError(f"{name!r} has no bundled weights. Pass a file with {spelled('weights', Code('path'))}.")
        with resources.as_file(resources.files("rankfold.zoo") / "weights" / info.bundled) as file:
            load_weights(model, file)
    elif weights is not None:
        load_weights(model, weights)
    return model.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fork the generators that constructors draw from, and seed the forks."""
    device = torch.get_default_device()
    accelerator = device.type not in ("cpu", "meta")
    with torch.random.fork_rng(
        devices=[device] if accelerator else [], device_type=device.type if accelerator else "cuda"
    ):
        # Not torch.manual_seed: it would also seed accelerators that are not forked.
        torch.default_generator.manual_seed(seed)
        if accelerator:
            torch.get_device_module(device).manual_seed(seed)
        yield
