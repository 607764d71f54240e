"""The settings that decide what a network computes but do not show in the names and shapes of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import nn

from rankfold._documents import parse_json
from rankfold.errors import CorruptArtifact, PlanMismatch
from rankfold.inventory.kinds import (
    attention_settings,
    conv1d_base,
    is_attention,
    original_class,
    own_forward,
    stock_base,
)
from rankfold.inventory.members import members_of
from rankfold.storage.weights import AGAIN
from rankfold.surgery import Factored
from rankfold.surgery.attention import SeparatedAttention
from rankfold.surgery.exchange import listed

Settings = dict[str, str]

_KEY, _CHECKSUM = "architecture", "architecture_sha256"
FRESH = "Load it into a fresh instance of the architecture that was compressed."
# Settings without an effect in eval mode, and the modules that do nothing there.
_IRRELEVANT = frozenset({"inplace", "p", "momentum", "dropout", "sparse", "scale_grad_by_freq"})
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
_CONTAINERS = ("torch.nn.modules.module", "torch.nn.modules.container")


def architecture(model: nn.Module) -> dict[str, Settings]:
    """Return the settings of every layer and every module of ``torch.nn`` by path.

    The settings of a layer are its fingerprint (`LayerInfo.fingerprint`), those of a factored layer the fingerprint of
    the layer it replaces. The settings of other stock modules, such as pooling, activations and norms, are the class
    and the attributes in its ``__constants__``. What the model's own classes compute in ``forward`` is not recorded.
    """
    by_path: dict[str, Settings] = {}
    inside: set[str] = set()
    for path, module in model.named_modules():
        if path.rpartition(".")[0] in inside:
            inside.add(path)
            continue
        settings = _settings(module)
        if settings is not None:
            by_path[path] = settings
        if isinstance(module, Factored) or is_attention(module):
            inside.add(path)
    return by_path


def write_architecture(model: nn.Module) -> dict[str, str]:
    """Return the record of a model's architecture and its checksum, for an artifact's metadata."""
    text = json.dumps(architecture(model))
    return {_KEY: text, _CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


def read_architecture(metadata: Mapping[str, str], source: str) -> dict[str, Settings]:
    """Return the architecture that an artifact records; empty if an earlier version wrote it.

    Raises
    ------
    CorruptArtifact
        If the record is damaged.
    """
    text, checksum = metadata.get(_KEY), metadata.get(_CHECKSUM)
    if text is None and checksum is None:
        return {}
    if text is None or hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise CorruptArtifact(
            f"{source!r} is damaged: its record of the architecture does not match its checksum. {AGAIN}"
        )
    recorded = parse_json(text, source=f"the record of the architecture in {source!r}")
    if not isinstance(recorded, dict) or not all(map(_is_settings, recorded.values())):
        raise CorruptArtifact(f"{source!r} is damaged: its record of the architecture is malformed. {AGAIN}")
    return recorded


def check_architecture(model: nn.Module, expected: Mapping[str, Settings]) -> None:
    """Compare a model, with the factored layers in place, with the architecture that an artifact records.

    Attributes that only one side has, as with another version of torch, are not compared.

    Raises
    ------
    PlanMismatch
        If the architectures differ; the message lists the differences.
    """
    actual = architecture(model)
    problems = [p for path, settings in expected.items() for p in _differences(path, settings, actual.get(path))]
    if expected:
        problems += [
            f"module {path!r} ({settings['type']}) was not in the saved model"
            for path, settings in actual.items()
            if path not in expected and settings["type"] != nn.Identity.__name__
        ]
    if problems:
        raise PlanMismatch(f"the model differs from the one that was saved:\n{listed(problems, 20)}\n{FRESH}")


def _is_settings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _differences(path: str, expected: Mapping[str, str], actual: Mapping[str, str] | None) -> list[str]:
    kind = expected.get("type", "")
    if actual is None:
        return [] if kind == nn.Identity.__name__ else [f"module {path!r} is missing or of another kind: saved {kind}"]
    if actual["type"] != kind:
        return [f"module {path!r} is {actual['type']}, saved was {kind}"]
    return [
        f"module {path!r} ({kind}) has {name} {actual[name]}, saved was {value}"
        for name, value in expected.items()
        if actual.get(name, value) != value
    ]


def _settings(module: nn.Module) -> Settings | None:
    """Return the settings of one module; None for containers and classes outside of torch."""
    if isinstance(module, Factored):
        return {"type": "layer", "fingerprint": module.info.fingerprint}
    if isinstance(module, SeparatedAttention) or is_attention(module):
        return {"type": "attention", "settings": attention_settings(module)}
    members = members_of(module, ("",))
    if members:
        layer_class = stock_base(module) or conv1d_base(module)
        custom = layer_class is not None and own_forward(module, layer_class) is not None
        forward = str(members[0].info.skip) if custom else "of torch"
        return {"type": "layer", "fingerprint": members[0].info.fingerprint, "forward": forward}
    base = _stock_class(module)
    if base is None:
        return None
    if issubclass(base, _PASSING):
        return {"type": nn.Identity.__name__}
    # SyncBatchNorm and BatchNorms of other dimensions differ in what they accept, not in what they compute.
    name = "BatchNorm" if issubclass(base, nn.modules.batchnorm._BatchNorm) else base.__name__
    settings = {"type": name}
    for attribute in getattr(base, "__constants__", ()):
        value = _text(getattr(module, attribute, _UNKNOWN))
        if attribute not in _IRRELEVANT and value is not None:
            settings[attribute] = value
    function = getattr(module, "activation", None)  # transformer layers have one
    if callable(function) and not isinstance(function, nn.Module) and hasattr(function, "__name__"):
        settings["activation"] = str(function.__name__)
    return settings


def _stock_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of ``torch.nn`` whose forward a module runs."""
    cls = original_class(module)
    base = next((c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules.")), None)
    if base is None or base.__module__ in _CONTAINERS or "forward" in vars(module):
        return None
    return base if cls.forward is base.forward else None


_UNKNOWN = object()


def _text(value: object) -> str | None:
    """Return a setting as text, the same for ``2``, ``2.0`` and ``(2, 2)``; None if it is not a plain value."""
    if isinstance(value, tuple | list):
        parts = [_text(v) for v in value]
        if not parts or any(part is None for part in parts):
            return None
        return str(parts[0]) if len(set(parts)) == 1 else "x".join(map(str, parts))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if value is None or isinstance(value, bool | int | float | str) else None
