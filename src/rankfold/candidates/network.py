"""Measured loss of a layer's candidates in the outputs of the network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold._progress import track
from rankfold._tensors import model_device, to_device
from rankfold.batches import LeadingBatches, batch_size, pieces, split_batch
from rankfold.calibration.replay import Memory, faithful, run_before
from rankfold.candidates.curves import WORST
from rankfold.candidates.outputs import check_comparable, check_taps, compared, modules_of, nothing_put_out
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import Spare, layer_weight, undisturbed
from rankfold.outputs import distance_and_energy
from rankfold.records import LayerInfo
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_, computes_weights

_NO_REPLAY = (
    "the network's activations before layer {!r} cannot be cached (they change from run to run or in place, or are "
    "differentiated). They are computed for each candidate, which takes longer."
)
_REMEMBERED = 2**28
"""Bytes of the original's outputs that are kept for the next layer."""


def _comparable() -> str:
    """Return what to do if outputs cannot be compared."""
    return f"Compare the outputs of other modules ({spelled('taps', ...)}), or use {spelled('proxy', 'weight')}."


class PlainCopy:
    """A copy of a model in which all weights are plain tensors: the spare one, unless the model computes weights."""

    def __init__(self, model: nn.Module, spare: Spare | None) -> None:
        self._spare = spare or Spare(model)
        self._baked = bake_weights_(copy_model(model)) if computes_weights(model) else None

    def lend(self) -> nn.Module:
        """Return the copy to a caller that restores it."""
        return self._spare.lend() if self._baked is None else self._baked


class NetworkProxy:
    """Relative squared distance between a network's outputs and the original's, with some layers' weights replaced.

    For each output tensor, the distance over the calibration data is divided by the energy; the result is the mean over
    the tensors.

    This is the accuracy estimator of CompressNAS (Sah et al. 2026), in which only one layer differs. The activations
    before this layer are computed once for all of its candidates (`rankfold.calibration.replay`).

    Parameters
    ----------
    model : Module
        The original model; not modified.
    batches : sequence
        Batches of inputs; targets are ignored.
    taps : sequence of str
        Modules whose outputs are compared; by default the network's outputs.
    spare : Spare, optional
        A copy of the model to work on; it is restored after each measurement.

    Raises
    ------
    UnknownNameError
        If a tap is not a module of the model.
    ModelError
        In `losses`, if the original's outputs contain NaN, or no comparable tensors.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], taps: Sequence[str] = (), spare: Spare | None = None
    ) -> None:
        self.original = model
        self._copy = PlainCopy(model, spare)
        self.batches = batches
        self.taps = taps
        self._references: dict[int, list[Tensor]] = {}
        self._room = _REMEMBERED
        self._whole: list[Tensor] | None = None  # outputs of `work` on the first batch
        check_taps(model, taps)

    @property
    def work(self) -> nn.Module:
        """The copy whose weights are replaced; all weights are plain tensors, and restored between measurements."""
        return self._copy.lend()

    def losses(self, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        """Return the loss of each of several weights of a layer, all other layers as in `work`."""
        totals = [_Distance() for _ in weights]
        modules = modules_of(self.work, layer)
        target = layer_weight(self.work, layer.name)
        kept, replays = target.clone(), True
        try:
            for number, batch in enumerate(track(self.batches, f"layer {layer.name or '(the model)'}"), 1):
                what = f"calibration batch {number}"
                inputs = to_device(split_batch(batch)[0], model_device(self.original))
                reference = self._reference(number, inputs, what)
                memory = self._before(modules, inputs, what) if replays else {}
                if number == 1 and not self._faithful(memory, inputs, what):
                    warnings.warn(_NO_REPLAY.format(layer.name), RankfoldWarning, stacklevel=2)
                    replays, memory = False, {}
                for weight, total in track(list(zip(weights, totals, strict=True)), f"candidates on {what}"):
                    target.copy_(weight)
                    total.add(compared(self.work, inputs, what, self.taps, memory), reference)
        finally:
            target.copy_(kept)
        return [total.value() for total in totals]

    def _reference(self, number: int, inputs: Any, what: str) -> list[Tensor]:
        """Return the original's outputs on a batch; those of the first batches are cached."""
        if number in self._references:
            return self._references[number]
        reference = compared(self.original, inputs, what, self.taps)
        if not reference:
            raise ModelError(f"{nothing_put_out(self.taps, what)} {_comparable()}")
        check_comparable(reference, what, _comparable())
        self._room -= sum(t.numel() * t.element_size() for t in reference)
        if self._room >= 0:
            self._references[number] = reference
        return reference

    def _before(self, modules: Collection[nn.Module], inputs: Any, what: str) -> Memory:
        """Return the activations of the network before these modules."""
        watched = {self.work.get_submodule(tap) for tap in self.taps}
        with undisturbed(self.work):
            return run_before(self.work, modules, inputs, what, watched=watched)

    def _faithful(self, memory: Memory, inputs: Any, what: str) -> bool:
        """Return whether a replay of the first batch yields the outputs of the whole network."""
        if not memory:
            return True
        if self._whole is None:
            self._whole = compared(self.work, inputs, what, self.taps)
        whole = self._whole
        try:
            replayed = compared(self.work, inputs, what, self.taps, memory)
        except ModelError:  # for example, because it differentiates cached activations
            return False
        return faithful(whole, replayed)

    def replace(self, name: str, weight: Tensor) -> None:
        """Replace the weight of a layer of `work`."""
        self._whole = None
        layer_weight(self.work, name).copy_(weight)


class _Distance:
    """The mean over output tensors of the relative squared distance; see `rankfold.outputs.distance_and_energy`."""

    def __init__(self) -> None:
        self.sums: list[list[float]] = []

    def add(self, outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Add the outputs on one batch."""
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (outputs, reference)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"the network's outputs cannot be compared: shapes {shapes[0]} with a replaced layer, {shapes[1]} "
                f"without. {_comparable()}"
            )
        self.sums = self.sums or [[0.0, 0.0] for _ in reference]
        for sums, ours, theirs in zip(self.sums, outputs, reference, strict=True):
            distance, energy = distance_and_energy(ours, theirs)
            sums[0] += distance
            sums[1] += energy

    def value(self) -> float:
        """Return the mean of the relative squared distances; overflow counts as `WORST`."""
        shares = [distance / energy if energy > 0 else float(distance > 0) for distance, energy in self.sums]
        mean = sum(shares) / len(shares)
        return min(mean, WORST) if math.isfinite(mean) else WORST


def first_samples(batches: Any, samples: int) -> list[Any]:
    """Return the first batches without targets, up to `samples` samples; the last batch is truncated if possible."""
    with torch.random.fork_rng(devices=[]):  # a loader draws from torch's generator even without shuffling
        return list(LeadingBatches(batches, samples, "calibration"))


def samples_between(batches: Any, start: int, stop: int) -> list[Any]:
    """Return the batches without targets of the samples from `start` to `stop`, as far as there are any."""
    between, seen = list[Any](), 0
    for inputs, _ in first_samples(batches, stop):
        size = batch_size(inputs)
        if seen >= start:
            between.append((inputs, None))
        elif seen + size > start:  # the rest of a batch; nothing of one that cannot be cut
            between += [(piece, None) for piece in list(pieces(inputs, start - seen))[1:]]
        seen += size
    return between
