"""Checkpoints: one file that is written atomically, contains plain tensors, and identifies its run."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold import _files
from rankfold._config import spelled
from rankfold._files import write_atomic
from rankfold._hashing import dense_parts
from rankfold._state import own_state
from rankfold._tensors import tensors_of
from rankfold.batches import split_batch
from rankfold.errors import ConfigError, CorruptArtifact, ModelError, RankfoldError, RankfoldWarning
from rankfold.inventory import run_batch, undisturbed
from rankfold.tune.batch_source import digest
from rankfold.tune.config import FineTune
from rankfold.tune.terms import Term

FORMAT = "rankfold-finetune"
VERSION = 1
NAME = "finetune.pt"

# Fields of the config that do not affect the result, or that cannot be compared (the metric is known by its name).
_FREE = {"data", "validate", "checkpoint", "checkpoint_every", "resume"}

# Largest distance of the starting weights from those of the interrupted run, relative to their norm. On some devices,
# recomputed factors differ in their last digits; unrelated factors differ by about 1.
_NEAR = 1e-3


def _start_over() -> str:
    return f"Delete it, or start over with {_restart()}."


def _restart() -> str:
    return spelled("resume", False, of="FineTune")


def checkpoint_file(path: str | Path) -> Path:
    """Return the file of a checkpoint option: the path itself if it has a suffix, otherwise a file in it."""
    path = Path(path)
    return path if path.suffix and not os.path.isdir(path) else path / NAME


def save(file: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; raise `RankfoldError` if that fails."""
    content = {"format": FORMAT, "version": VERSION, **payload}
    try:
        write_atomic(file, lambda temporary: torch.save(content, temporary))
    except RuntimeError as error:  # torch's error for a full disk
        raise RankfoldError(f"cannot write the checkpoint {str(file)!r}: {error}. Is the disk full?") from error


def read(file: Path) -> dict[str, Any] | None:
    """Return a checkpoint's content, on the CPU; None if the file does not exist.

    Raises
    ------
    CorruptArtifact
        If the file is truncated, foreign, of a newer version, or not a regular file.
    """
    try:
        _files.require_regular(file, os.stat(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except CorruptArtifact:
        raise
    except Exception as error:  # a damaged file can raise anything in the unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptArtifact(
            f"the checkpoint {str(file)!r} cannot be read: it is truncated or belongs to another program "
            f"({reason:.100}). {_start_over()}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CorruptArtifact(f"{str(file)!r} is not a checkpoint of rankfold's fine-tuning. {_start_over()}")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CorruptArtifact(
            f"the checkpoint {str(file)!r} has version {version!r}; this version of rankfold reads versions up to "
            f"{VERSION}. Upgrade rankfold. {_start_over()}"
        )
    return content


def identity(
    model: nn.Module, teacher: nn.Module | None, config: FineTune, total: int, metric: str | None
) -> dict[str, Any]:
    """Return what two runs must have in common for one to continue the other, as plain values."""
    options = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.name not in _FREE}
    options |= {"lr": config.peak_lr, "weight_decay": config.decay, "steps in all": total}
    if config.uses_metric:
        options["metric"] = metric
    state = own_state(model)
    return {
        "options": options,
        "tensors": {k: f"{str(v.dtype)[6:]} {list(v.shape)}" for k, v in state.items()},
        "start": {k: _sketch(v) for k, v in state.items()},
        "teacher": {k: _sketch(v) for k, v in own_state(teacher).items()} if teacher else None,
    }


def require_same(file: Path, stored: Any, now: Mapping[str, Any]) -> None:
    """Raise an error that names the differences between a checkpoint's run and this one.

    Raises
    ------
    ConfigError
        If an option, the model, its starting weights or the teacher differ.
    CorruptArtifact
        If the checkpoint does not identify its run.
    """
    if not isinstance(stored, Mapping) or set(stored) != set(now):
        raise CorruptArtifact(f"the checkpoint {str(file)!r} does not identify its run. {_start_over()}")
    differences: list[str] = []
    for part in ("options", "tensors"):
        old, new = stored[part], now[part]
        for key in [*new, *(k for k in old if k not in new)]:
            if old.get(key) != new.get(key):
                differences.append(f"{key}: {old.get(key, 'absent')} then, {new.get(key, 'absent')} now")
    if not differences:
        differences += _moved("starting weights", stored["start"], now["start"])
        differences += _moved("teacher", stored["teacher"], now["teacher"])
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise ConfigError(
            f"the checkpoint {str(file)!r} is of another run ({shown}). Use the same options and model to resume it, "
            f"another checkpoint path, or {_restart()} to start over and overwrite it."
        )


def probe(model: nn.Module, teacher: nn.Module | None, batch: Any) -> dict[str, Any]:
    """Return a sketch of the run's first batch and of the networks' outputs for it before training, as plain values."""
    inputs = split_batch(batch)[0]
    outputs = {"model": _outputs(model, inputs), "teacher": None if teacher is None else _outputs(teacher, inputs)}
    return {"data": digest(batch), "outputs": outputs}


def require_same_probe(file: Path, stored: Any, now: Mapping[str, Any] | None, *, warn: bool) -> None:
    """Warn if the checkpoint's run had another first batch; raise if its networks had other outputs for the same one.

    Raises
    ------
    ConfigError
        If the model or the teacher has the same weights but other outputs: for example, an attribute selects another
        head.
    """
    if not isinstance(stored, Mapping) or now is None:  # an earlier version, or an iterator
        return
    if stored["data"] != now["data"]:
        if warn:
            warnings.warn(
                f"the first batch differs from that of the run of checkpoint {str(file)!r}: the previous training used "
                "other data, or the data draws random numbers that cannot be reproduced. Use another checkpoint path, "
                f"or {_restart()}, to train on this data from the start.",
                RankfoldWarning,
                stacklevel=2,
            )
        return
    for what in ("model", "teacher"):
        moved = _moved(f"outputs of the {what}", stored["outputs"][what], now["outputs"][what])
        if moved:
            raise ConfigError(
                f"the checkpoint {str(file)!r} is of another run ({moved[0]}): with the same weights and the same "
                f"batch, the {what} has other outputs. Use another checkpoint path, or {_restart()} to start over and "
                "overwrite it."
            )


def _outputs(model: nn.Module, inputs: Any) -> dict[str, list[float]] | None:
    """Return sketches of a network's outputs in evaluation mode, or None if it does not run in it."""
    try:
        with undisturbed(model):
            outputs = run_batch(model, inputs, "the first batch")
    except ModelError:  # training reports the error
        return None
    return {str(i): _sketch(t.float().nan_to_num()) for i, t in enumerate(tensors_of(outputs)) if t.is_floating_point()}


def _moved(what: str, old: Any, new: Any) -> list[str]:
    if (old is None) != (new is None):
        return [f"{what}: {'absent' if old is None else 'given'} then, {'absent' if new is None else 'given'} now"]
    if old is None or new is None:
        return []
    if set(old) != set(new):
        return [f"{what}: another network"]
    for key, (norm, probe) in new.items():
        slack = _NEAR * max(norm, old[key][0]) + 1e-12
        if abs(norm - old[key][0]) > slack or abs(probe - old[key][1]) > slack:
            return [f"{what}: {key} has other values"]
    return []


def _sketch(tensor: Tensor) -> list[float]:
    """Return a tensor's norm and its component along a fixed direction (of unit norm)."""
    parts = [p.reshape(-1) for p in dense_parts(tensor.detach()) if p.is_floating_point() or p.is_complex()]
    flat = torch.cat([torch.view_as_real(p).reshape(-1) if p.is_complex() else p for p in parts] or [torch.empty(0)])
    if not flat.numel():
        return [0.0, 0.0]
    flat = flat.cpu().double()
    direction = torch.cos(torch.arange(1, flat.numel() + 1, dtype=torch.float64))
    return [float(flat.norm()), float(flat @ direction / direction.norm())]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Term):
        names = [f.name for f in dataclasses.fields(value) if f.repr] if dataclasses.is_dataclass(value) else ["weight"]
        return [type(value).__qualname__, *(f"{name}={_plain(getattr(value, name))}" for name in names)]
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    return f"{module}.{name}" if name else type(value).__name__
