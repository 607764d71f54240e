"""The damage that a layer's candidates do to the outputs of the whole network, measured."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._batches import batch_size, evaluating, iterate, model_device, split_batch, tensors_of, to_device
from rankfold.calibration.replay import Memory, remembering, run_before
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import find_layer, fused_attention_off, layer_weight, run_batch
from rankfold.records import LayerInfo
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_

_ANEW = (
    "what the network computes before layer {!r} cannot be remembered (it changes from run to run, or in place); it is "
    "computed anew for each candidate, which takes longer."
)


class NetworkProxy:
    """Relative squared distance between a network's outputs and the original's, with some layers' weights replaced.

    This is the accuracy estimator of CompressNAS (Sah et al. 2026): only the layer in question differs. What lies
    before it is computed once for all of its candidates (`rankfold.calibration.replay`).

    Parameters
    ----------
    model : Module
        The original; left untouched, and copied once.
    batches : sequence
        Batches of inputs; targets are not used.
    taps : sequence of str
        Modules whose outputs are compared; the network's own without any.

    Raises
    ------
    ModelError
        From `alone`: if the outputs hold no comparable tensors.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], taps: Sequence[str] = ()) -> None:
        self.original = model
        self.work = bake_weights_(copy_model(model))
        self.batches = batches
        self.taps = taps

    def alone(self, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        """Return the damage of each of some weights of a layer, all other layers being as they are in `work`."""
        totals = [_Distance() for _ in weights]
        modules = {find_layer(self.work, path)[0] for path in (layer.name, *layer.aliases, *layer.ties)}
        target = layer_weight(self.work, layer.name)
        kept = target.clone()
        try:
            for number, batch in enumerate(self.batches, 1):
                what = f"calibration batch {number}"
                inputs = to_device(split_batch(batch)[0], model_device(self.original))
                with evaluating(self.original), evaluating(self.work), fused_attention_off():
                    reference = self._outputs(self.original, inputs, what)
                    memory = run_before(self.work, modules, inputs, what)
                    if number == 1 and not self._faithful(memory, inputs, what):
                        warnings.warn(_ANEW.format(layer.name), RankfoldWarning, stacklevel=2)
                        modules = set(self.work.modules())
                        memory = {}
                    for weight, total in zip(weights, totals, strict=True):
                        target.copy_(weight)
                        with remembering(self.work, memory):
                            total.add(self._outputs(self.work, inputs, what), reference)
                        target.copy_(kept)
        finally:
            target.copy_(kept)
        return [total.value() for total in totals]

    def _faithful(self, memory: Memory, inputs: Any, what: str) -> bool:
        """Whether a replay puts out what the whole network does."""
        whole = self._outputs(self.work, inputs, what)
        with remembering(self.work, memory):
            replayed = self._outputs(self.work, inputs, what)
        return len(whole) == len(replayed) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()) if a.numel() else 0)
            for a, b in zip(whole, replayed, strict=True)
        )

    def replace(self, name: str, weight: Tensor) -> None:
        """Let `work` have this weight in a layer."""
        layer_weight(self.work, name).copy_(weight)

    def _outputs(self, model: nn.Module, inputs: Any, what: str) -> list[Tensor]:
        taken: list[Any] = []
        with ExitStack() as hooks:
            for path in self.taps:
                hook = model.get_submodule(path).register_forward_hook(lambda m, a, out: taken.append(out))  # noqa: ARG005
                hooks.callback(hook.remove)
            output = run_batch(model, inputs, what)
        return [t.float() for t in tensors_of(taken if self.taps else output) if t.is_floating_point()]


class _Distance:
    """A squared distance relative to the reference, of each output tensor by itself and then averaged."""

    def __init__(self) -> None:
        self.sums: list[list[float]] = []

    def add(self, outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (outputs, reference)]
        if shapes[0] != shapes[1] or not reference:
            raise ModelError(
                f"the network's outputs cannot be compared: shapes {shapes[0]} with some layer replaced, {shapes[1]} "
                "without. Name modules whose outputs can (taps=[...]), or choose proxy='output'."
            )
        self.sums = self.sums or [[0.0, 0.0] for _ in reference]
        for sums, ours, theirs in zip(self.sums, outputs, reference, strict=True):
            sums[0] += float((ours - theirs).square().sum())
            sums[1] += float(theirs.square().sum())

    def value(self) -> float:
        shares = [distance / energy if energy > 0 else float(distance > 0) for distance, energy in self.sums]
        return sum(shares) / len(shares)


def first_samples(batches: Any, samples: int) -> list[Any]:
    """Return the first batches that hold at least so many samples together (fewer if there are no more)."""
    found: list[Any] = []
    count = 0
    for batch in iterate(batches, "calibration"):
        found.append(batch)
        count += batch_size(split_batch(batch)[0])
        if count >= samples:
            break
    return found
