"""Networks of torchvision and timm, by name; never a download."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from rankfold.errors import ConfigError, MissingExtra, RankfoldError, UnknownNameError

FAMILIES = ("torchvision", "timm")

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_VIDEO_MEAN, _VIDEO_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a package tells about a network without building it.

    Attributes
    ----------
    task : str
        ``"image"``, ``"detection"``, ``"video"`` or ``"flow"``: the form of the input.
    input_shape : tuple of int or None
        Shape of one input without the batch dimension; None if it is not a single tensor.
    mean, std : tuple of float or None
        Normalisation of pixels in [0, 1]; None where the network does it itself.
    """

    task: str
    input_shape: tuple[int, ...] | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def network_names(family: str) -> list[str]:
    """Return the names of all networks of ``"torchvision"`` or ``"timm"``."""
    if family == "torchvision":
        return list(_torchvision().list_models())
    return list(_timm().list_models())


def facts(family: str, network: str) -> Facts:
    """Return what is known about a network of torchvision or timm.

    Raises
    ------
    UnknownNameError
        If the package has no such network.
    MissingExtra
        If the package is not installed.
    """
    if family == "torchvision":
        return _torchvision_facts(network)
    timm = _timm()
    _check_timm(timm, network)
    try:
        config = timm.get_pretrained_cfg(network)
    except RuntimeError:  # the part behind the dot is no tag of this network
        raise _unknown("timm", network, timm.list_pretrained()) from None
    if config is None:
        return Facts(task="image", input_shape=(3, 224, 224), mean=_MEAN, std=_STD)
    return Facts(
        task="image",
        input_shape=tuple(config.input_size),
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def build_external(family: str, network: str, num_classes: int | None) -> nn.Module:
    """Build a network of torchvision or timm with random weights.

    Raises
    ------
    UnknownNameError
        If the package has no such network.
    ConfigError
        If the network cannot have another number of classes.
    RankfoldError
        If the package itself fails to build it.
    MissingExtra
        If the package is not installed.
    """
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if family == "torchvision":
        builder = _torchvision_builder(network)
        parameters = inspect.signature(builder).parameters
        options["weights"] = None
        if "weights_backbone" in parameters:
            options["weights_backbone"] = None  # torchvision downloads the backbone otherwise
        if network.removeprefix("quantized_") in ("googlenet", "inception_v3"):
            options["init_weights"] = True  # what None does, after a warning
    else:
        timm = _timm()
        _check_timm(timm, network)

        def builder(**arguments: Any) -> nn.Module:
            return timm.create_model(network, pretrained=False, **arguments)

    try:
        return builder(**options)
    except TypeError as error:
        if num_classes is not None and "num_classes" in str(error):
            raise ConfigError(f"{family}/{network} has no num_classes. Leave num_classes out.") from error
        raise
    except (RuntimeError, ImportError) as error:
        raise RankfoldError(f"{family} cannot build {network!r}: {error}") from error


def _torchvision_builder(network: str) -> Any:
    models = _torchvision()
    try:
        return models.get_model_builder(network)
    except ValueError:
        raise _unknown("torchvision", network, models.list_models()) from None


def _torchvision_facts(network: str) -> Facts:
    module = _torchvision_builder(network).__module__
    if ".detection." in module:
        return Facts(task="detection", input_shape=None)  # normalises and resizes by itself
    if ".optical_flow." in module:
        return Facts(task="flow", input_shape=None)
    if ".video." in module:
        size = 112 if network in ("r3d_18", "mc3_18", "r2plus1d_18") else 224
        shape = (3, 16, size, size)
        return Facts(task="video", input_shape=shape, mean=_VIDEO_MEAN, std=_VIDEO_STD)
    size = 299 if network.removeprefix("quantized_") == "inception_v3" else 224
    return Facts(task="image", input_shape=(3, size, size), mean=_MEAN, std=_STD)


def _check_timm(timm: ModuleType, network: str) -> None:
    # is_model is also false for "hf-hub:..." and "local-dir:...", which would fetch something.
    if not timm.is_model(network):
        raise _unknown("timm", network, timm.list_models())


def _unknown(family: str, network: str, known: Sequence[str]) -> UnknownNameError:
    # Hundreds of names help nobody: the nearest ones, and the call that lists all.
    near = difflib.get_close_matches(network, known, n=8, cutoff=0.4)
    choices = [*near, f"or any of rankfold.zoo.names({family!r})"]
    return UnknownNameError(f"network of {family}", network, choices)


def _torchvision() -> ModuleType:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtra("a torchvision network", "vision", "torchvision") from error
    return models


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("a timm network", "vision", "timm") from error
    return timm
