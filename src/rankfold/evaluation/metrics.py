"""Built-in metrics: accuracy, agreement with the original, output error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from rankfold._config import require
from rankfold._tensors import model_device, to_device
from rankfold._turns import in_turn
from rankfold.batches import batch_size
from rankfold.errors import DataError, MetricError
from rankfold.evaluation.evaluate import Metric
from rankfold.evaluation.predictions import as_targets, hits, predictions
from rankfold.inventory import Padding, evaluating, model_inputs, run_batch
from rankfold.outputs import class_scores, squared_distance


def topk(loader: Iterable[Any], k: int = 1) -> Metric:
    """Return the metric: share of targets among the k classes with the highest scores, 0..1.

    Parameters
    ----------
    loader : iterable
        Batches with targets (`rankfold.batches`), which are class indices; -100 is ignored, as in cross-entropy.
    k : int
        Number of classes.

    Notes
    -----
    The scores (`rankfold.outputs.class_scores`) have the shape ``(batch, classes)``, ``(batch, positions, classes)`` or
    ``(batch, classes, *size)``. Scores that contain NaN count as a miss.
    """
    require(isinstance(k, int) and k >= 1, "k of topk", k, "an integer of at least 1")
    return _TopK(loader, k)


def top1(loader: Iterable[Any]) -> Metric:
    """Return the metric: share of targets with the highest score, 0..1. See `rankfold.evaluation.topk`."""
    return topk(loader, 1)


def agreement(reference: nn.Module, loader: Iterable[Any]) -> Metric:
    """Return the metric: share of predictions that equal those of the reference model, 0..1.

    Targets are not used. The reference runs in every measurement and must not change between them.
    """
    return _Agreement(reference, loader)


def output_error(reference: nn.Module, loader: Iterable[Any]) -> Metric:
    """Return the metric: squared difference from the reference model's outputs, relative to their squared norm.

    It is ``sum ||y - y_ref||^2 / sum ||y_ref||^2`` over all floating-point output tensors; 0 means equal. Targets are
    not used. Where the reference's outputs are infinite (masked scores), the model's must be equal, and are excluded.
    Padded positions (`rankfold.inventory.Padding`) are excluded from outputs ``(batch, length, ...)``.
    """
    return _OutputError(reference, loader)


class _OfBatches(Metric):
    """A metric that runs the model on every batch of a loader and counts the samples."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def _batches(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        """Yield the inputs of every batch, on the model's device, and its target."""
        self.samples = 0
        for inputs, target in model_inputs(model, self.loader, "evaluation", self.name):
            self.samples += batch_size(inputs)
            yield inputs, target


class _AgainstReference(_OfBatches):
    """A metric that compares the model's outputs with those of a reference model."""

    def __init__(self, reference: nn.Module, loader: Iterable[Any]) -> None:
        super().__init__(loader)
        self.reference = reference

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Any, Any, Padding | None]]:
        """Yield the outputs of the model and of the reference, and the padding of the batch."""
        device = model_device(self.reference)
        with evaluating(model) as reset, evaluating(self.reference) as reset_reference:
            for inputs, _ in self._batches(model):
                ours = run_batch(model, inputs, "evaluation data")
                reset()
                theirs = run_batch(self.reference, to_device(inputs, device), "evaluation data")
                reset_reference()
                yield ours, theirs, Padding.of(self.reference, inputs)


class _TopK(_OfBatches):
    def __init__(self, loader: Iterable[Any], k: int) -> None:
        super().__init__(loader)
        self.k, self.name = k, f"top-{k}"

    @in_turn
    def __call__(self, model: nn.Module, /) -> float:
        right = total = 0
        with evaluating(model) as reset:
            for inputs, target in self._batches(model):
                if target is None:
                    raise DataError(
                        f"{self.name} needs labels, but the batches have none. Expected batches (inputs, target), or "
                        "dicts with 'labels', 'label' or 'target'. Without labels, use agreement(reference, loader)."
                    )
                scores = class_scores(run_batch(model, inputs, "evaluation data"))
                counted = hits(scores, as_targets(target, scores), self.k)
                right += int(counted.sum())
                total += counted.numel()
                reset()
        if not total:
            raise DataError(
                f"{self.name}: every target of the evaluation data is -100, which is ignored. Pass data with other "
                "targets."
            )
        return right / total


class _Agreement(_AgainstReference):
    name = "agreement"

    @in_turn
    def __call__(self, model: nn.Module, /) -> float:
        same = total = 0
        for *outputs, _ in self._pairs(model):
            ours, theirs = (predictions(class_scores(output)) for output in outputs)
            if ours.shape != theirs.shape:
                raise DataError(
                    f"agreement: the model's predictions have shape {tuple(ours.shape)}, the reference's "
                    f"{tuple(theirs.shape)}. Both models must solve the same task."
                )
            theirs = theirs.to(ours.device)
            same += int(((ours == theirs) & (ours >= 0)).sum())
            total += ours.numel()
        if not total:
            raise DataError("agreement: the batches have no samples. Pass data with at least one.")
        return same / total


class _OutputError(_AgainstReference):
    name = "output error"
    higher_is_better = False

    @in_turn
    def __call__(self, model: nn.Module, /) -> float:
        distance = norm = 0.0
        for *outputs, padding in self._pairs(model):
            d, n = squared_distance(*(outputs if padding is None else map(padding.zeroed, outputs)))
            distance, norm = distance + d, norm + n
        if math.isinf(distance):
            raise MetricError(
                "output error: the outputs of the model and of the reference are infinite or NaN in different places, "
                "so they cannot be compared. Does the model overflow, or mask other classes or positions?"
            )
        if norm:
            return distance / norm
        return 0.0 if distance == 0 else math.inf
