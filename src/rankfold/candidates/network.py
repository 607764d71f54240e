"""The loss that candidates of a layer cause in the outputs of the whole network, measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._progress import track
from rankfold._tensors import model_device, to_device
from rankfold.batches import batch_size, iterate, leading, split_batch
from rankfold.calibration.replay import Memory, run_before
from rankfold.candidates.outputs import check_comparable, check_taps, compared, modules_of, nothing_put_out
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import Spare, layer_weight, undisturbed
from rankfold.outputs import distance_and_energy
from rankfold.records import LayerInfo
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_, computes_weights

_ANEW = (
    "what the network computes before layer {!r} cannot be remembered (it changes from run to run or in place, "
    "or is differentiated); it is computed again for each candidate, which takes longer."
)
_COMPARABLE = "Name modules whose outputs can (taps=[...]), or choose proxy='output'."
_REMEMBERED = 2**28
"""Bytes of the original's outputs that are kept for the next layer."""
_WORST = 1e6
"""The loss of outputs that overflow, or are infinite elsewhere than the original's: as bad as a thousand times too
large."""


class NetworkProxy:
    """Relative squared distance between a network's outputs and the original's, with some layers' weights replaced.

    Every output tensor counts the same: the distance over the calibration data is taken relative to the tensor's own
    energy, and then averaged over the tensors.

    This is the accuracy estimator of CompressNAS (Sah et al. 2026): only the layer in question differs. What lies
    before it is computed once for all of its candidates (`rankfold.calibration.replay`).

    Parameters
    ----------
    model : Module
        The original; left untouched.
    batches : sequence
        Batches of inputs; targets are not used.
    taps : sequence of str
        Modules whose outputs are compared; the network's own without any.
    spare : Spare, optional
        A copy of the model to work on; each measurement leaves it as it was.

    Raises
    ------
    UnknownNameError
        If a tap is not a module of the model.
    ModelError
        From `alone`: if the original's outputs hold NaN, or no tensors that can be compared.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], taps: Sequence[str] = (), spare: Spare | None = None
    ) -> None:
        self.original = model
        self._spare = spare or Spare(model)
        self._baked = bake_weights_(copy_model(model)) if computes_weights(model) else None
        self.batches = batches
        self.taps = taps
        self._references: dict[int, list[Tensor]] = {}
        self._room = _REMEMBERED
        self._whole: list[Tensor] | None = None  # outputs of `work` on the first batch
        check_taps(model, taps)

    @property
    def work(self) -> nn.Module:
        """The copy whose weights are replaced, all of them plain tensors; between measurements it is the original."""
        return self._spare.lend() if self._baked is None else self._baked

    def alone(self, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        """Return the loss of each of some weights of a layer, all other layers being as they are in `work`."""
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
                    warnings.warn(_ANEW.format(layer.name), RankfoldWarning, stacklevel=2)
                    replays, memory = False, {}
                for weight, total in track(list(zip(weights, totals, strict=True)), f"candidates on {what}"):
                    target.copy_(weight)
                    total.add(compared(self.work, inputs, what, self.taps, memory), reference)
        finally:
            target.copy_(kept)
        return [total.value() for total in totals]

    def _reference(self, number: int, inputs: Any, what: str) -> list[Tensor]:
        """Return the original's outputs on a batch; those of the first batches are remembered."""
        known = self._references.get(number)
        if known is not None:
            return known
        reference = compared(self.original, inputs, what, self.taps)
        self._check(reference, what)
        self._room -= sum(t.numel() * t.element_size() for t in reference)
        if self._room >= 0:
            self._references[number] = reference
        return reference

    def _check(self, reference: Sequence[Tensor], what: str) -> None:
        """Raise unless these outputs of the original are something to compare with."""
        if not reference:
            raise ModelError(f"{nothing_put_out(self.taps, what)} {_COMPARABLE}")
        check_comparable(reference, what, _COMPARABLE)

    def _before(self, modules: Collection[nn.Module], inputs: Any, what: str) -> Memory:
        """Return what the network computes before these modules."""
        watched = {self.work.get_submodule(tap) for tap in self.taps}
        with undisturbed(self.work):
            return run_before(self.work, modules, inputs, what, watched=watched)

    def _faithful(self, memory: Memory, inputs: Any, what: str) -> bool:
        """Whether a replay of the first batch returns what the whole network returns."""
        if not memory:
            return True
        if self._whole is None:
            self._whole = compared(self.work, inputs, what, self.taps)
        whole = self._whole
        try:
            replayed = compared(self.work, inputs, what, self.taps, memory)
        except ModelError:  # it differentiates what was remembered, or minds in another way
            return False
        return len(whole) == len(replayed) and all(map(_close, whole, replayed))

    def replace(self, name: str, weight: Tensor) -> None:
        """Let `work` have this weight in a layer."""
        self._whole = None
        layer_weight(self.work, name).copy_(weight)


def _close(whole: Tensor, replayed: Tensor) -> bool:
    """Whether two runs return the same up to rounding."""
    if whole.shape != replayed.shape:
        return False
    finite = whole[whole.isfinite()]
    slack = 1e-5 * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(whole, replayed, rtol=1e-4, atol=slack)


class _Distance:
    """A squared distance relative to the reference, of each output tensor alone, then averaged.

    Infinite values of the reference are left out; see `rankfold.outputs.distance_and_energy`.
    """

    def __init__(self) -> None:
        self.sums: list[list[float]] = []

    def add(self, outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Take one batch's outputs in."""
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (outputs, reference)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"the network's outputs cannot be compared: shapes {shapes[0]} with some layer replaced, {shapes[1]} "
                f"without. {_COMPARABLE}"
            )
        self.sums = self.sums or [[0.0, 0.0] for _ in reference]
        for sums, ours, theirs in zip(self.sums, outputs, reference, strict=True):
            distance, energy = distance_and_energy(ours, theirs)
            sums[0] += distance
            sums[1] += energy

    def value(self) -> float:
        """Return the mean of the relative squared distances; overflow counts as `_WORST`."""
        shares = [distance / energy if energy > 0 else float(distance > 0) for distance, energy in self.sums]
        mean = sum(shares) / len(shares)
        return min(mean, _WORST) if math.isfinite(mean) else _WORST


def first_samples(batches: Any, samples: int) -> list[Any]:
    """Return the first batches without targets, up to this many samples.

    The last batch is cut where it can be (`rankfold.batches.leading`).
    """
    found: list[Any] = []
    missing = samples
    with torch.random.fork_rng(devices=[]):  # a loader draws from torch's generator even without shuffling
        for batch in iterate(batches, "calibration"):
            inputs = leading(split_batch(batch)[0], missing)
            found.append((inputs, None))
            missing -= batch_size(inputs)
            if missing <= 0:
                break
    return found
