"""``config.json``: the network of an artifact, recorded by its name in timm or transformers.

The file has transformers' name but ``"model_type": "rankfold"``, which ``from_pretrained`` of transformers does not
know. Classes that ignore the type meet weights that do not fit (`guards`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rankfold._documents import json_text, parse_document, read_text
from rankfold._printable import quoted
from rankfold.errors import CorruptArtifact
from rankfold.records import Plan
from rankfold.storage.folder import CONFIG_FILE, artifact_identity, companion_file

FORMAT = "rankfold-network"
VERSION = 1
MODEL_TYPE = "rankfold"

Library = Literal["timm", "transformers"]

TIMM_OPTIONS: dict[str, type] = {"num_classes": int, "global_pool": str, "in_chans": int}
"""The arguments of ``timm.create_model`` that are recorded, with their types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network by its name in a library.

    Parameters
    ----------
    library : {"timm", "transformers"}
        The library.
    name : str
        timm's name of the architecture, or the name of transformers' class.
    dtype : str
        Data type of the parameters, such as ``"float32"``.
    options : mapping
        Arguments of ``timm.create_model``, or transformers' configuration.
    generation : mapping or None
        The generation configuration of transformers.
    """

    library: Library
    name: str
    dtype: str
    options: Mapping[str, Any]
    generation: Mapping[str, Any] | None = None

    def texts(self, artifact: str) -> dict[str, str]:
        """Return the name and text of the ``config.json`` of the artifact with this checksum."""
        head = {"format": FORMAT, "version": VERSION, "model_type": MODEL_TYPE}
        return {CONFIG_FILE: json_text({**head, **asdict(self), "artifact": artifact}, indent=2) + "\n"}

    @classmethod
    def load(cls, folder: str | Path) -> Network:
        """Read the ``config.json`` of an artifact.

        Raises
        ------
        CorruptArtifact
            If it is missing, damaged, of a newer version, or describes another artifact.
        """
        file = companion_file(folder, CONFIG_FILE)
        advice = "Load the artifact with rankfold.load(folder, model), where model has the original architecture."
        text = read_text(file, kind="record of the network", hint=advice)
        source = repr(str(file))
        data = parse_document(text, kind="network", format=FORMAT, version=VERSION, source=source)
        values: dict[str, Any] = {field.name: data.get(field.name) for field in fields(cls)}
        for name, value in values.items():
            if not _is_valid(name, value):
                raise CorruptArtifact(f"{source}: {name!r} cannot be {quoted(value)}. {advice}")
        if data.get("artifact") != artifact_identity(folder):
            raise CorruptArtifact(f"{source} describes another artifact than the one in its folder. {advice}")
        return cls(**values)


def network_of(model: nn.Module) -> Network | None:
    """Return the record of a network of timm or transformers; None for others, and for their subclasses elsewhere."""
    library = type(model).__module__.partition(".")[0]
    dtype = next((str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()), "float32")
    config: Any = getattr(model, "config", None)
    if library == "transformers" and hasattr(config, "to_json_string"):
        options = json.loads(config.to_json_string(use_diff=False))
        generation: Any = getattr(model, "generation_config", None)
        return Network(
            library="transformers",
            name=type(model).__name__,
            dtype=dtype,
            options={key: value for key, value in options.items() if key not in ("auto_map", "quantization_config")},
            generation=None if generation is None else json.loads(generation.to_json_string(use_diff=False)),
        )
    facts: Any = getattr(model, "pretrained_cfg", None)
    if library == "timm" and isinstance(facts, Mapping) and facts.get("architecture"):
        return Network(library="timm", name=facts["architecture"], dtype=dtype, options=_timm_options(model, facts))
    return None


def guards(plan: Plan, tensors: Iterable[str]) -> dict[str, Tensor]:
    """Return empty tensors with the names of the weights that a plan replaced by factors.

    The original network then refuses the weights file because of their shapes. Without them, ``from_pretrained`` and
    ``load_state_dict(strict=False)`` would leave these weights random, with only a warning.
    """
    names = {f"{layer}.weight" for layer in plan.factored if layer}
    return {name: torch.empty(0) for name in names.difference(tensors)}


def without_guards(plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a weights file that belong to the compressed model."""
    names = guards(plan, ())
    return {name: tensor for name, tensor in tensors.items() if name not in names or tensor.numel()}


def _timm_options(model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that show in a network."""
    values = {name: getattr(model, name, None) for name in ("num_classes", "global_pool")}
    values["global_pool"] = getattr(values["global_pool"], "pool_type", values["global_pool"])  # of a pooling module
    first = facts.get("first_conv")
    if isinstance(first, str):
        values["in_chans"] = getattr(dict(model.named_modules()).get(first), "in_channels", None)
    return {name: value for name, value in values.items() if isinstance(value, TIMM_OPTIONS[name])}


def _is_valid(name: str, value: object) -> bool:
    if name == "library":
        return value in get_args(Library)
    if name == "generation" and value is None:
        return True
    if name in ("options", "generation"):
        return isinstance(value, dict)
    return isinstance(value, str) and (name != "dtype" or isinstance(getattr(torch, value, None), torch.dtype))
