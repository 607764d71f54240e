"""Networks of torchvision and timm by name, without downloads."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from rankfold._config import spelled
from rankfold.errors import ConfigError, MissingExtra, RankfoldError, UnknownNameError
from rankfold.zoo.info import IMAGENET_MEAN, IMAGENET_STD, NetworkInfo

FAMILIES = ("torchvision", "timm")

_VIDEO_MEAN, _VIDEO_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


def network_names(family: str) -> list[str]:
    """Return the names of all networks of ``"torchvision"`` or ``"timm"``."""
    return list((torchvision_models() if family == "torchvision" else _timm()).list_models())


def network_info(family: str, network: str) -> NetworkInfo:
    """Return the facts about a network of torchvision or timm; raise `UnknownNameError` if there is none."""
    name, summary = f"{family}/{network}", f"{network} of {family}"
    if family == "torchvision":
        builder = _torchvision_builder(network)
        build = partial(_build, family, network, builder, _torchvision_options(network, builder))
        return NetworkInfo(name=name, summary=summary, build=build, **_torchvision_input(network, builder.__module__))
    timm = _timm()
    # is_model is also false for "hf-hub:..." and "local-dir:...", which would be downloaded.
    if not timm.is_model(network):
        raise _unknown("timm", network, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(network)
    except RuntimeError:  # the part after the dot is not a tag of this network
        raise _unknown("timm", network, timm.list_pretrained()) from None
    return NetworkInfo(
        name=name,
        summary=summary,
        task="image",
        input_shape=tuple(config.input_size) if config else (3, 224, 224),
        mean=tuple(config.mean) if config else IMAGENET_MEAN,
        std=tuple(config.std) if config else IMAGENET_STD,
        build=partial(_build, family, network, partial(timm.create_model, network), {"pretrained": False}),
    )


def _build(
    family: str, network: str, builder: Callable[..., nn.Module], options: dict[str, Any], num_classes: int | None
) -> nn.Module:
    try:
        return builder(**options, **({} if num_classes is None else {"num_classes": num_classes}))
    except TypeError as error:
        if num_classes is not None and "num_classes" in str(error):
            raise ConfigError(f"{family}/{network} has no num_classes. Leave {spelled('num_classes')} out.") from error
        raise
    except (RuntimeError, ImportError) as error:
        raise RankfoldError(f"{family} cannot build {network!r}: {error}") from error


def _torchvision_builder(network: str) -> Callable[..., nn.Module]:
    models = torchvision_models()
    try:
        return models.get_model_builder(network)
    except ValueError:
        raise _unknown("torchvision", network, models.list_models()) from None


def _torchvision_options(network: str, builder: Callable[..., nn.Module]) -> dict[str, Any]:
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # otherwise torchvision downloads the backbone
    if network.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the effect of the default None, without its warning
    return options


def _torchvision_input(network: str, module: str) -> dict[str, Any]:
    if ".detection." in module:
        return {"task": "detection"}  # the network itself normalizes and resizes
    if ".optical_flow." in module:
        return {"task": "flow"}
    if ".video." in module:
        size = 112 if network in ("r3d_18", "mc3_18", "r2plus1d_18") else 224
        return {"task": "video", "input_shape": (3, 16, size, size), "mean": _VIDEO_MEAN, "std": _VIDEO_STD}
    size = 299 if network.removeprefix("quantized_") == "inception_v3" else 224
    return {"task": "image", "input_shape": (3, size, size), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _unknown(family: str, network: str, available: Sequence[str]) -> UnknownNameError:
    # There are hundreds of names: list the nearest ones and the call that returns all of them.
    near = difflib.get_close_matches(network, available, n=8, cutoff=0.4)
    return UnknownNameError(
        "network", network, [*near, f"{'or ' if near else ''}any of rankfold.zoo.names({family!r})"], of=family
    )


def torchvision_models() -> ModuleType:
    """Return ``torchvision.models``, or raise `MissingExtra`."""
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
