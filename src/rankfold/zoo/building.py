"""`create`: a network by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import resources

import torch
from torch import nn

from rankfold.errors import ConfigError, ModelError
from rankfold.zoo.entries import NetworkInfo, entry
from rankfold.zoo.external import build_external
from rankfold.zoo.factories import call_factory, is_factory, load_factory
from rankfold.zoo.weight_files import load_weights

MOST_CLASSES = 10**6
"""Of a network of the zoo; more than any data set has."""


def create(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a network by name, in eval mode. Nothing is ever downloaded.

    Parameters
    ----------
    name : str
        One of `names()`; ``"torchvision/<name>"`` or ``"timm/<name>"`` for any network of these
        packages; or a function of your own as ``"pkg.module:factory"`` or
        ``"path/to/file.py:factory"``, called without arguments (with ``num_classes`` if given).
    weights : path, "bundled" or None
        A ``.safetensors`` file or a torch file of a state dict (read with ``weights_only=True``);
        ``"bundled"`` for the weights that come with rankfold; None for random weights.
    num_classes : int, optional
        Number of outputs, where it is not the network's default.
    seed : int, optional
        Makes the random weights reproducible and leaves torch's global generators untouched.
        Without it they are drawn from the global generator, as by any torch constructor.

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    UnknownNameError
        If there is no such network; the nearest name is offered.
    ConfigError
        If `num_classes` is not allowed, or no weights are bundled with this network.
    RankfoldError, CorruptArtifact, ModelError
        If the weights file is missing, is broken, or does not fit the network.
    MissingExtra
        If torchvision or timm is needed and not installed.
    """
    info = entry(name)
    if num_classes is not None and not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes must be at least 1 and at most {MOST_CLASSES:,}. Got {num_classes} instead.")
    # With weights the random ones do not matter, and need not advance the global generator.
    fixed = seed if seed is not None else (0 if weights is not None else None)
    if is_factory(name):
        load_factory(name)  # outside the seeded part: only a first import draws random numbers
    with nullcontext() if fixed is None else _seeded(fixed):
        model = _build(info, num_classes)
    if weights == "bundled":
        if info.bundled is None:
            raise ConfigError(f"no weights are bundled with {name!r}. Give a file as weights=...")
        with resources.as_file(resources.files("rankfold.zoo") / "weights" / info.bundled) as file:
            load_weights(model, file)
    elif weights is not None:
        load_weights(model, weights)
    return model.eval()


def _build(info: NetworkInfo, num_classes: int | None) -> nn.Module:
    if info.build is not None:
        return info.build(num_classes or info.num_classes or 10)
    family, _, network = info.name.partition("/")
    if ":" not in info.name:
        return build_external(family, network, num_classes)
    options = {} if num_classes is None else {"num_classes": num_classes}
    model = call_factory(info.name, **options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{info.name!r} must return a torch.nn.Module. Got {type(model).__name__} instead.")
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fork the generators that constructors draw from, and seed them."""
    device = torch.get_default_device()
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also seed every accelerator, outside the fork.
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        torch.get_device_module(device).manual_seed(seed)
        yield
