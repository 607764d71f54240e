"""Networks of timm and transformers from the records of artifacts, without downloads and without code of a folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rankfold._printable import quoted
from rankfold.errors import CorruptArtifact, MissingExtra, RankfoldError, UnknownNameError
from rankfold.storage.network import TIMM_OPTIONS, Network
from rankfold.zoo.building import seeded
from rankfold.zoo.external import network_info


def build(network: Network) -> nn.Module:
    """Build a recorded network with random weights, in eval mode; torch's global generators are left untouched.

    Raises
    ------
    UnknownNameError
        If the installed library has no network of this name.
    CorruptArtifact
        If the record has other options than `rankfold.save` writes.
    RankfoldError
        If the library cannot build the network.
    MissingExtra
        If timm or transformers is not installed.
    """
    builder = _timm if network.library == "timm" else _transformers
    with seeded(0):
        return builder(network).eval()


def _timm(network: Network) -> nn.Module:
    info = network_info("timm", network.name)  # refuses names of the hub and of folders
    _check_options(network.options)
    import timm

    try:
        model = timm.create_model(network.name, pretrained=False, **network.options)
    except Exception as error:
        raise RankfoldError(f"timm cannot build {info.name!r} with {dict(network.options)}: {error}") from error
    return model.to(getattr(torch, network.dtype))


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        kind = TIMM_OPTIONS.get(name)
        if kind is None or not isinstance(value, kind):
            raise CorruptArtifact(f"the record of the network has the option {quoted(name)}: {quoted(value)}.")


def _transformers(network: Network) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("a network of transformers", "transformers", "transformers") from error
    cls = getattr(transformers, network.name, None)
    if not (inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel) and cls.config_class is not None):
        raise UnknownNameError("network", network.name, ["the classes of its documentation"], of="transformers")
    options = dict(network.options)
    options.update({key: network.dtype for key in ("dtype", "torch_dtype") if key in options})
    try:
        config: Any = cls.config_class.from_dict(options)
        if hasattr(config, "use_pretrained_backbone"):
            config.use_pretrained_backbone = False  # it would be downloaded
        model: Any = cls._from_config(config)
        if network.generation is not None:
            model.generation_config = transformers.GenerationConfig.from_dict(dict(network.generation))
    except Exception as error:
        raise RankfoldError(f"transformers cannot build {network.name!r}: {type(error).__name__}: {error}") from error
    return model
