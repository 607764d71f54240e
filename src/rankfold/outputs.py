"""Outputs that a model may return. The same rules hold for metrics, fine-tuning, proxies and BatchNorm checks.

A model may return a tensor, or tensors nested in tuples, lists, mappings and dataclasses (a `ModelOutput` of
transformers is a mapping). Networks are compared by all floating-point tensors inside (`squared_distance`); metrics and
losses of classifiers use one of them (`class_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankfold._config import Code, spelled
from rankfold._tensors import float_tensors, tensors_of
from rankfold.errors import DataError, ModelError

MASKED = 1e18
"""Magnitude that only masks have (the smallest float, for example): its square exceeds the range of float32."""
IGNORED = -100
"""The class index of an ignored target, as in torch's cross-entropy."""
FAR = 1e8
"""Magnitude that masks may have (-1e9, for example), and few outputs do."""


def class_scores(output: Any, *, dims: int = 2) -> Tensor:
    """Return the class scores in a model's output: its ``logits`` or ``out``, else its first tensor.

    Both names are keys of a mapping, or attributes of any other object. Scores have at least `dims` dimensions: 2 for
    ``(batch, classes)``, 1 where a model may return one number per sample.

    Raises
    ------
    ModelError
        If there is no such floating-point tensor.
    """
    scores = output
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            scores = output[name]
            break
        if isinstance(value := getattr(output, name, None), Tensor):
            scores = value
            break
    tensors = tensors_of(scores)
    if not tensors or not tensors[0].is_floating_point() or tensors[0].ndim < dims:
        what = f"{tuple(tensors[0].shape)}, {tensors[0].dtype}" if tensors else type(output).__name__
        raise ModelError(
            f"the model's output has no class scores (batch, classes, ...). Got {what} instead. Pass a metric of your "
            f"own, and fine-tune with {spelled('loss', 'layer')}, or with "
            f"{spelled('task', Code('callable(outputs, target)'))}."
        )
    return tensors[0]


def class_axis(scores: Tensor) -> int:
    """Return the dimension of the classes: the last of up to three dimensions, otherwise the second."""
    return -1 if scores.ndim <= 3 else 1


def require_classes(target: Tensor, classes: int) -> None:
    """Raise `DataError` if a class index is out of range; `IGNORED` is allowed."""
    wrong = target[(target != IGNORED) & ((target < 0) | (target >= classes))]
    if wrong.numel():
        raise DataError(
            f"target {int(wrong[0])} is out of range: the model has {classes} classes (0 to {classes - 1}). Do the "
            "targets start at 1, or belong to another data set?"
        )


def squared_distance(output: Any, reference: Any) -> tuple[float, float]:
    """Return ``(||output - reference||^2, ||reference||^2)`` over all float tensors; see `distance_and_energy`.

    Raises
    ------
    ModelError
        If the two contain different numbers or shapes of tensors.
    """
    ours, theirs = float_tensors(output), float_tensors(reference)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1] or not ours:
        raise ModelError(
            f"outputs of shapes {shapes[0]} cannot be compared with the reference's {shapes[1]}. Both "
            "models must return the same shapes."
        )
    distance = norm = 0.0
    for a, b in zip(ours, theirs, strict=True):
        # float32 sums of squares are precise enough for a comparison and available on every device.
        squares = distance_and_energy(a.float(), b.to(a.device).float())
        distance, norm = distance + squares[0], norm + squares[1]
    return distance, norm


def distance_and_energy(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return ``||ours - theirs||^2`` and ``||theirs||^2`` of two tensors of one shape, excluding masked values.

    Infinite values, and finite values of at least `MASKED`, count as masked. They must be equal in both tensors,
    otherwise the distance is infinite, as it is with NaN. Values of at least `FAR` also count as masked if all of them
    are equal.
    """
    distance, energy = float((ours - theirs).square().sum()), float(theirs.square().sum())
    if math.isfinite(distance) and energy < FAR**2:
        return distance, energy
    size = theirs.abs()
    masked = ~(size < MASKED)
    if not torch.equal(ours[masked], theirs[masked]):
        return math.inf, float(theirs[~masked].square().sum())
    far = size >= FAR
    if torch.equal(ours[far], theirs[far]) and not bool(far.all()):
        masked |= far
    distance, energy = (float(t[~masked].square().sum()) for t in (ours - theirs, theirs))
    return math.inf if math.isnan(distance) else distance, energy
