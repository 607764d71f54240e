"""Weights from safetensors and torch files, loaded completely or not at all."""

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
        Modified in place.
    path : path
        A ``.safetensors`` file, or a torch file with a state dict, bare or under ``"state_dict"``,
        ``"model_state_dict"`` or ``"model"``. Wrapper prefixes (``module.`` of DataParallel and DDP, ``_orig_mod.`` of
        torch.compile) are removed with a `RankfoldWarning`.

    Raises
    ------
    RankfoldError
        If there is no such file.
    CorruptArtifact
        If the file is truncated, contains pickled objects or no state dict.
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
    """Return the tensors of a safetensors or torch file on the CPU, by the names in the file."""
    from safetensors.torch import load_file

    file = Path(path).expanduser()
    if not os.path.isfile(file):
        what = "is not a regular file" if os.path.exists(file) else "does not exist"
        what = "is a folder" if os.path.isdir(file) else what
        raise RankfoldError(f"the weights file {str(file)!r} {what}. Pass a .safetensors or .pt file.")
    kind = "safetensors" if file.suffix.lower() == ".safetensors" else "torch"
    try:
        if kind == "safetensors":
            return load_file(file)
        return _state_dict(torch.load(file, map_location="cpu", weights_only=True), file)
    except CorruptArtifact:
        raise
    except Exception as error:  # torch.load raises errors of many classes
        refused = re.search(r"(?:GLOBAL|class|function)[: ]+([\w.]+\.[\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused is not None:
            raise CorruptArtifact(
                f"{str(file)!r} contains pickled Python objects ({refused[1]}), which rankfold never executes. "
                f"Save model.state_dict() alone, preferably with safetensors, and load that file."
            ) from error
        raise CorruptArtifact(
            f"{str(file)!r} is not a complete {kind} file: {_sentence(error)}. "
            f"It may be truncated or of another format; copy or download it again."
        ) from error


def _sentence(error: Exception) -> str:
    """Return the first sentence of an error: torch's go on with advice for trusted files."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].removesuffix(".")


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        what = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CorruptArtifact(f"{str(file)!r} contains {what}, not a state dict. Save model.state_dict().")
    keys = [repr(key) for key in content if not isinstance(key, str)]
    if keys:
        raise CorruptArtifact(f"{str(file)!r} has keys that are not strings: {_some(keys)}. Save model.state_dict().")
    others = [repr(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CorruptArtifact(
            f"{str(file)!r} has entries that are not tensors: {_some(others)}. "
            f"A state dict may also be nested under one of: {', '.join(_NESTS)}."
        )
    return dict(content)


def _unwrap(state: dict[str, Tensor], expected: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Strip wrapper prefixes if more names then match those of the model."""
    plain = [_COMPILED.sub("", name) for name in state]
    stripped = ["_orig_mod."] if plain != list(state) else []
    # Once per wrapper, unless the model itself has a child called "module".
    while all(n.startswith("module.") for n in plain) and not expected.keys() & set(plain):
        plain = [n.removeprefix("module.") for n in plain]
        stripped.append("module.")
    matching = len(expected.keys() & set(plain))
    if len(set(plain)) < len(plain) or matching <= len(expected.keys() & state.keys()):
        return state  # nothing gained: the error shows the names in the file
    warnings.warn(
        f"removed the wrapper prefix {' and '.join(map(repr, stripped))} from the names in {str(file)!r}",
        RankfoldWarning,
        stacklevel=4,
    )
    return dict(zip(plain, state.values(), strict=True))


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Any], file: Path) -> None:
    shapes = [
        f"{n} is {tuple(state[n].shape)} in the file, {tuple(value.shape)} in the network"
        for n, value in expected.items()
        if n in state and not is_lazy(value) and state[n].shape != value.shape
    ]
    problems = {
        # Files of old versions of torch lack BatchNorm's step counter, and torch fills it in.
        "missing in the file": [n for n in expected if n not in state and not n.endswith("num_batches_tracked")],
        "not in the network": [n for n in state if n not in expected],
        "of another shape": shapes,
    }
    lines = [f"  {len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if lines:
        raise ModelError(
            "\n".join([f"the weights in {str(file)!r} do not fit this network:", *lines])
            + "\nPass the weights of this architecture (and its num_classes)."
        )


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return f"{shown}, and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown
