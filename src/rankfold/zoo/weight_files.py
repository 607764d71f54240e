"""Weights from a safetensors or torch file into a network, whole or not at all."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankfold.errors import CorruptArtifact, ModelError, RankfoldError, RankfoldWarning

# Keys under which training scripts put the state dict in their checkpoints.
_NESTS = ("state_dict", "model_state_dict", "model")
# torch.compile wraps at any depth; DataParallel and DDP wrap the whole model.
_COMPILED = re.compile(r"(^|(?<=\.))_orig_mod\.")
_SHOWN = 8


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file's weights into a model, strictly; the model is unchanged on any error.

    Parameters
    ----------
    model : nn.Module
        Receives the weights (in place).
    path : path
        A ``.safetensors`` file, or a torch file of a state dict, bare or under ``"state_dict"``,
        ``"model_state_dict"`` or ``"model"``. Wrapper prefixes (``module.`` of DataParallel and
        DDP, ``_orig_mod.`` of torch.compile) are removed with a `RankfoldWarning`.

    Raises
    ------
    RankfoldError
        If there is no such file.
    CorruptArtifact
        If the file is truncated, holds pickled objects or no state dict.
    ModelError
        If names or shapes differ; the message lists them.
    """
    file = Path(path).expanduser()
    state = read_state_dict(file)
    expected = model.state_dict(keep_vars=True)
    if not expected.keys() <= state.keys():
        state = _unwrap(state, expected, file)
    _check(state, expected, file)
    model.load_state_dict(state)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file by name, on the CPU, names as stored.

    Raises
    ------
    RankfoldError
        If there is no such file.
    CorruptArtifact
        If the file is truncated, holds pickled objects or no state dict.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        what = (
            "is a folder"
            if os.path.isdir(file)
            else "is not a regular file"
            if os.path.exists(file)
            else "does not exist"
        )
        raise RankfoldError(f"the weights file {str(file)!r} {what}. Give a .safetensors or .pt file.")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return _read_torch(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CorruptArtifact(
            f"{str(file)!r} is not a whole safetensors file: {error}. "
            f"It may be truncated or of another format; copy or download it again."
        ) from error


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function)[: ]+([\w.]+\.[\w.]+)", str(error))
        if found is None:
            raise _broken(file, error) from error
        raise CorruptArtifact(
            f"{str(file)!r} holds pickled Python objects ({found[1]}), which rankfold never runs. "
            f"Save model.state_dict() alone, best with safetensors, and load that file."
        ) from error
    except Exception as error:  # torch.load has no error class of its own
        raise _broken(file, error) from error
    return _state_dict(content, file)


def _broken(file: Path, error: Exception) -> CorruptArtifact:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorruptArtifact(
        f"{str(file)!r} is not a whole torch file: {reason}. "
        f"It may be truncated or of another format; copy or download it again."
    )


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in _NESTS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise CorruptArtifact(f"{str(file)!r} holds {_describe(content)}, not a state dict. Save model.state_dict().")
    names = [repr(key) for key in content if not isinstance(key, str)]
    if names:
        raise CorruptArtifact(f"{str(file)!r} has names that are not text: {_some(names)}. Save model.state_dict().")
    others = [repr(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CorruptArtifact(
            f"{str(file)!r} holds entries that are not tensors: {_some(others)}. "
            f"A state dict may also be nested under one of: {', '.join(_NESTS)}."
        )
    return dict(content)


def _unwrap(state: dict[str, Tensor], expected: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Strip wrapper prefixes if that brings the names closer to the model's."""
    stripped: list[str] = []
    names = list(state)
    plain = [_COMPILED.sub("", name) for name in names]
    if plain != names:
        stripped.append("_orig_mod.")
    # Once per wrapper, and never where the model itself has a child called "module".
    while all(n.startswith("module.") for n in plain) and not expected.keys() & set(plain):
        plain = [n.removeprefix("module.") for n in plain]
        stripped.append("module.")
    matching = len(expected.keys() & set(plain))
    if len(set(plain)) < len(plain) or matching <= len(expected.keys() & state.keys()):
        return state  # no gain: the error will show the names as they are in the file
    warnings.warn(
        f"removed the wrapper prefix {' and '.join(map(repr, stripped))} from the names in {str(file)!r}",
        RankfoldWarning,
        stacklevel=4,
    )
    return dict(zip(plain, state.values(), strict=True))


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Any], file: Path) -> None:
    # BatchNorm's step counter came late to torch: older weights lack it, and torch fills it in.
    missing = [n for n in expected if n not in state and n.rpartition(".")[2] != "num_batches_tracked"]
    extra = [n for n in state if n not in expected]
    shapes = [
        f"{n} is {tuple(state[n].shape)} in the file, {tuple(value.shape)} in the network"
        for n, value in expected.items()
        if n in state and not is_lazy(value) and state[n].shape != value.shape
    ]
    problems = [
        f"  {len(items)} {what}: {_some(items)}"
        for what, items in (
            ("missing in the file", missing),
            ("unknown to the network", extra),
            ("of another shape", shapes),
        )
        if items
    ]
    if problems:
        raise ModelError(
            "\n".join([f"the weights in {str(file)!r} do not fit this network:", *problems])
            + "\nGive the weights of this architecture (and its num_classes)."
        )


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return f"{shown}, and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return "an empty dict"
    return f"a {type(content).__name__}"
