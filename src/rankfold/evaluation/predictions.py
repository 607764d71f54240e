"""Class predictions and hits from class scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankfold._config import spelled
from rankfold.errors import ConfigError, DataError
from rankfold.outputs import IGNORED, class_axis, require_classes


def as_targets(target: Any, scores: Tensor) -> Tensor:
    """Return targets as class indices on the device of the scores.

    Raises
    ------
    DataError
        If they are not class indices, or do not fit the shape of the scores.
    """
    try:
        target = torch.as_tensor(target).to(scores.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"targets must be class indices (a tensor of integers). Got {type(target).__name__} instead: {error}"
        ) from error
    if target.is_floating_point() or target.is_complex():
        raise DataError(
            f"targets must be class indices (integers). Got {target.dtype} of shape "
            f"{tuple(target.shape)} instead; for one-hot targets, pass their argmax."
        )
    target = target.long()
    if target.ndim == 2 and target.shape[1] == 1 and scores.ndim == 2:
        target = target[:, 0]
    require_classes(target, scores.shape[_axis_by_target(scores, target.shape)])
    return target


def hits(scores: Tensor, target: Tensor, k: int) -> Tensor:
    """Return, for each target that is not ignored, whether it is among the k highest of its scores."""
    scores = scores.movedim(_axis_by_target(scores, target.shape), -1)
    if k > scores.shape[-1]:
        raise ConfigError(
            f"{spelled('k', of='topk')} must be at most the number of classes, {scores.shape[-1]}. Got {k} instead."
        )
    counts = target != IGNORED
    scores, target = scores[counts], target[counts]
    best = scores.topk(k, dim=-1)
    # A masked class is not a prediction.
    among = ((best.indices == target.unsqueeze(-1)) & ~best.values.isneginf()).any(-1)
    return among & ~scores.isnan().any(-1)


def predictions(scores: Tensor) -> Tensor:
    """Return the class with the highest score along `rankfold.outputs.class_axis`; -1 for scores with NaN."""
    axis = class_axis(scores)
    return torch.where(scores.isnan().any(axis), -1, scores.argmax(axis))


def _axis_by_target(scores: Tensor, target_shape: torch.Size) -> int:
    if scores.shape[:-1] == target_shape:
        return -1
    if scores.shape[:1] + scores.shape[2:] == target_shape:
        return 1
    raise DataError(
        f"targets of shape {tuple(target_shape)} do not fit scores of shape {tuple(scores.shape)}. "
        "Expected one class index per row of scores."
    )
