"""Re-estimation of BatchNorm statistics after a model has changed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankfold._tensors import model_device, to_device
from rankfold.calibration.flow import first_tensor
from rankfold.errors import DataError, ModelError, RankfoldWarning
from rankfold.inventory import evaluating, model_inputs, run_batch
from rankfold.outputs import squared_distance


@dataclass(frozen=True, slots=True)
class Renewal:
    """Whether running statistics were replaced, and why. As a truth value, it is true if they were.

    Parameters
    ----------
    kept : bool
        Whether the new statistics were kept; otherwise the old ones are restored.
    reason : str
        The reason in words, for the report.
    """

    kept: bool
    reason: str

    def __bool__(self) -> bool:
        return self.kept

    @property
    def note(self) -> str:
        """The note in the report."""
        return f"BatchNorm statistics were {'replaced' if self.kept else 'kept'}: {self.reason}"


CLOSER = "new ones bring the outputs closer to the original's"
NO_HELP = "new ones would not help"
NOT_CALLED = "no BatchNorm runs on the calibration data"
TOO_SMALL = (
    "every calibration batch gives a BatchNorm at most one value per channel, and a single value has no variance; use "
    "larger batches"
)


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any], reference: nn.Module | None = None) -> Renewal:
    """Re-estimate the running statistics of every BatchNorm, and keep the new ones if they help.

    Factors shift the distribution of every feature map, so the stored statistics no longer fit. New statistics help
    after severe compression and hurt after mild compression, so they are compared with the reference model.

    The estimate is the plain average over the batches of each batch's mean and (unbiased) variance; all other modules
    stay in evaluation mode. A call with at most one value per channel has no variance and is skipped: the BatchNorm
    then uses its current statistics. A BatchNorm that is never called keeps its own.

    Parameters
    ----------
    model : Module
        The changed model; its statistics are replaced in place.
    batches : iterable
        Batches with or without targets; targets are ignored. With a reference, odd batches (first, third, ...) are
        used for the estimate and even ones for the decision; a single batch is used for both. If a batch is too small
        for the estimate, the next one is used instead.
    reference : Module or None
        The original model. The new statistics are kept only if they bring the model's outputs closer to the
        reference's in the mean square. With None, they are always kept.

    Returns
    -------
    Renewal
        Whether the new statistics were kept, and the reason; otherwise the old ones are restored exactly. False for a
        model without running statistics.

    Raises
    ------
    DataError
        If there is no batch. Without a reference, also if every batch is too small to have a variance.
    ModelError
        If the model cannot run on a batch.
    """
    norms = [m for m in model.modules() if is_tracking_norm(m)]
    if not norms:
        return Renewal(False, "the model has no BatchNorm with running statistics")
    if isinstance(batches, Iterator):  # it can be read only once
        batches = list(batches)
    old = [_statistics(norm) for norm in norms]
    kept = False
    try:
        estimate = _Estimate(norms)
        used, count = _estimate(model, estimate, batches, alternating=reference is not None)
        for norm, state in zip(norms, old, strict=True):
            if not estimate.updates[norm]:
                _load([norm], [state])
        if not used:
            if reference is None and estimate.calls:
                raise DataError(f"BatchNorm statistics cannot be estimated: {TOO_SMALL}.")
            return Renewal(False, TOO_SMALL if estimate.calls else NOT_CALLED)
        new = [_statistics(norm) for norm in norms]
        if reference is None:
            kept = all(map(_is_finite, new))
            return Renewal(kept, "new ones were estimated" if kept else "the new ones are not finite")
        deciding = set(range(count)) - used or used
        renewal = _compare(model, reference, batches, deciding, norms, (old, new))
        kept = renewal.kept
        return renewal
    finally:
        if not kept:
            _load(norms, old)


def is_tracking_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module is a BatchNorm that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and bool(module.track_running_stats)


_Statistics = list[Tensor]


def _statistics(norm: _BatchNorm) -> _Statistics:
    """Return a copy of one BatchNorm's running statistics."""
    return [buffer.clone() for buffer in norm.buffers(recurse=False)]


def _is_finite(statistics: _Statistics) -> bool:
    return all(bool(values.isfinite().all()) for values in statistics)


@torch.no_grad()
def _load(norms: list[_BatchNorm], states: list[_Statistics]) -> None:
    for norm, state in zip(norms, states, strict=True):
        for buffer, values in zip(norm.buffers(recurse=False), state, strict=True):
            buffer.copy_(values)


class _Estimate:
    """Makes BatchNorms average the statistics of all calls that have a variance."""

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.norms = norms
        self.calls = 0  # of any norm
        self.updates: Counter[_BatchNorm] = Counter()

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Average within the block."""
        momenta = [norm.momentum for norm in self.norms]
        with ExitStack() as hooks:
            for norm in self.norms:
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.zero_()
                hooks.callback(norm.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True).remove)
                if _is_synchronized(norm):
                    hooks.callback(norm.register_forward_hook(self._synchronized, with_kwargs=True).remove)
            try:
                yield
            finally:
                for norm, momentum in zip(self.norms, momenta, strict=True):
                    norm.momentum = momentum

    def _begin(self, norm: Any, args: Any, kwargs: Any) -> None:
        x = first_tensor(args, kwargs)
        if x is None:
            return
        self.calls += 1
        enough = x.numel() > x.shape[1]
        norm.training = enough and not _is_synchronized(norm)
        if enough:
            self.updates[norm] += 1
            norm.momentum = 1 / self.updates[norm]  # the average of all calls so far
            if self.updates[norm] == 1 and not _is_finite(_statistics(norm)):
                norm.reset_running_stats()

    def _synchronized(self, norm: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Do in this process alone what the training mode of a SyncBatchNorm does across processes."""
        x = first_tensor(args, kwargs)
        if x is None or not x.numel() > x.shape[1]:
            return output
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum, norm.eps
        )


def _is_synchronized(norm: nn.Module) -> bool:
    return type(norm).forward is nn.SyncBatchNorm.forward


def _estimate(
    model: nn.Module, estimate: _Estimate, batches: Iterable[Any], *, alternating: bool
) -> tuple[set[int], int]:
    """Run every second batch (or all) in the norms' training mode; return those used, and the number of batches."""
    used, count, turn = set[int](), 0, True
    with evaluating(model, without=estimate.norms) as reset, estimate.averaging():
        for index, (inputs, _) in enumerate(model_inputs(model, batches, "calibration", "re-estimating BatchNorm")):
            count = index + 1
            if not turn:
                turn = True
                continue
            before = estimate.updates.total()
            run_batch(model, inputs, f"calibration batch {count}")
            reset()
            if estimate.updates.total() > before:
                used.add(index)
                turn = not alternating
    return used, count


def _compare(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any],
    deciding: Collection[int],
    norms: list[_BatchNorm],
    states: tuple[list[_Statistics], list[_Statistics]],
) -> Renewal:
    """Compare old and new statistics against the reference; leave the new ones in place."""
    distances = [0.0, 0.0]
    with evaluating(model, without=norms) as reset, evaluating(reference) as reset_reference:
        device = model_device(reference)
        data = model_inputs(model, batches, "calibration", "comparing BatchNorm statistics")
        for index, (inputs, _) in enumerate(data):
            if index not in deciding:
                continue
            what = f"calibration batch {index + 1}"
            target = run_batch(reference, to_device(inputs, device), what)
            reset_reference()
            for i, state in enumerate(states):
                _load(norms, state)
                output = run_batch(model, inputs, what)
                reset()
                try:
                    distances[i] += squared_distance(output, target)[0]
                except ModelError as error:
                    warnings.warn(
                        f"keeping the old BatchNorm statistics, because new ones cannot be compared: {error}",
                        RankfoldWarning,
                        stacklevel=3,
                    )
                    return Renewal(False, f"new ones cannot be compared: {error}")
    closer = distances[1] < distances[0]
    return Renewal(closer, CLOSER if closer else NO_HELP)
