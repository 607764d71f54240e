"""BatchNorm statistics of a changed model, estimated anew from data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankfold._batches import (
    evaluating,
    iterate,
    model_device,
    split_batch,
    squared_distance,
    to_device,
)
from rankfold._progress import track
from rankfold.errors import DataError, ModelError, RankfoldWarning
from rankfold.inventory import run_batch


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any], reference: nn.Module | None = None) -> bool:
    """Estimate the running statistics of every BatchNorm anew, and keep them where that helps.

    Factors shift the distribution of every feature map, so the stored statistics no longer fit. New
    ones help after severe compression and hurt after mild one: hence the reference.

    The estimate is the plain average over the batches of each batch's mean and (unbiased) variance;
    all other modules stay in evaluation mode.

    Parameters
    ----------
    model : Module
        The changed model; its statistics are replaced in place.
    batches : iterable
        Batches with or without targets; targets are not used. With a reference, the first, third,
        ... batches serve the estimate and the others the decision; a single batch serves both.
    reference : Module or None
        The original model. The new statistics are kept only if they bring the model's outputs
        closer to the reference's in the mean square. None keeps them always.

    Returns
    -------
    bool
        Whether the new statistics were kept; otherwise the old ones are back, exactly. False for a
        model without running statistics.

    Raises
    ------
    DataError
        If there is no batch. Without a reference also if a batch is too small to have a variance; with one, that is a
        warning, and the old statistics are kept.
    ModelError
        If the model cannot run on a batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return False
    if isinstance(batches, Iterator):  # its items come only once
        batches = list(batches)
    old = [_State.of(norm) for norm in norms]
    kept = False
    try:
        parity = None if reference is None else 0
        count = _estimate(model, norms, batches, parity)
        new = [_State.of(norm) for norm in norms]
        if reference is None:
            kept = all(state.finite() for state in new)
        else:
            parity = 1 if count > 1 else None
            kept = _is_closer(model, reference, batches, parity, norms, old, new)
    except _TooSmall as error:
        if reference is None:
            raise
        warnings.warn(f"{error} The old statistics are kept.", RankfoldWarning, stacklevel=2)
    finally:
        if not kept:
            _load(norms, old)
    return kept


class _TooSmall(DataError):
    """A batch has one value a channel, and so no variance."""


@dataclass(frozen=True, slots=True)
class _State:
    """A copy of one BatchNorm's running statistics."""

    mean: Tensor
    var: Tensor
    count: Tensor | None

    @classmethod
    def of(cls, norm: _BatchNorm) -> _State:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = norm.num_batches_tracked
        return cls(
            norm.running_mean.clone(),
            norm.running_var.clone(),
            None if count is None else count.clone(),
        )

    def finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.var.isfinite().all())


@torch.no_grad()
def _load(norms: list[_BatchNorm], states: list[_State]) -> None:
    for norm, state in zip(norms, states, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(state.mean)
        norm.running_var.copy_(state.var)
        if norm.num_batches_tracked is not None and state.count is not None:
            norm.num_batches_tracked.copy_(state.count)


def _estimate(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Any], parity: int | None) -> int:
    """Run every second batch (or all) in the norms' training mode; return how many there were."""
    count = 0
    with evaluating(model), _averaging(norms):
        for index, inputs in _inputs(model, batches, "re-estimating BatchNorm"):
            count = index + 1
            if parity is None or index % 2 == parity:
                try:
                    run_batch(model, inputs, f"calibration batch {count}")
                except ModelError as error:
                    if not str(error.__cause__).startswith("Expected more than 1 value per channel"):
                        raise
                    raise _TooSmall(
                        "BatchNorm statistics cannot be estimated from calibration batch "
                        f"{count}: {error.__cause__}. Use larger batches, and drop_last."
                    ) from error
    return count


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let the norms take the average of all batches (``momentum=None``) within the block."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _is_closer(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any],
    parity: int | None,
    norms: list[_BatchNorm],
    old: list[_State],
    new: list[_State],
) -> bool:
    """Compare both statistics against the reference; leave the new ones in place."""
    distances = [0.0, 0.0]
    with evaluating(model), evaluating(reference):
        device = model_device(reference)
        for index, inputs in _inputs(model, batches, "comparing BatchNorm statistics"):
            if parity is not None and index % 2 != parity:
                continue
            what = f"calibration batch {index + 1}"
            target = run_batch(reference, to_device(inputs, device), what)
            for i, states in enumerate((old, new)):
                _load(norms, states)
                output = run_batch(model, inputs, what)
                try:
                    distances[i] += squared_distance(output, target)[0]
                except ModelError as error:
                    warnings.warn(
                        f"new BatchNorm statistics cannot be judged, keeping the old ones: {error}",
                        RankfoldWarning,
                        stacklevel=3,
                    )
                    return False
    return distances[1] < distances[0]


def _inputs(model: nn.Module, batches: Iterable[Any], description: str) -> Iterator[tuple[int, Any]]:
    device = model_device(model)
    items = track(iterate(batches, "calibration"), description, length_hint(batches) or None)
    for index, batch in enumerate(items):
        yield index, to_device(split_batch(batch)[0], device)
