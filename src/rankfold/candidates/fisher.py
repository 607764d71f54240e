"""The loss that candidates of a layer cause in the outputs of the whole network, to second order, from gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._progress import track
from rankfold._tensors import float_tensors, model_device, to_device
from rankfold.batches import split_batch
from rankfold.candidates.outputs import check_comparable, check_taps, modules_of, nothing_put_out, tapped
from rankfold.errors import ModelError
from rankfold.inventory import layer_weight, run_batch, stored_weight, undisturbed
from rankfold.outputs import MASKED, distance_and_energy
from rankfold.records import LayerInfo
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_

DRAWS = 64
"""Gradients over all batches together. A loss's relative standard deviation is about sqrt(2 / DRAWS) at most; that of
the ratio of two candidates' of one layer is far less, since the same gradients judge both."""
HELD = 2**29
"""Bytes of gradients that are held at once; layers beyond that take further passes."""

_OTHERWISE = "proxy='network' and proxy='output' need no gradients; or name modules to compare by taps=[...]."


class FisherProxy:
    """Relative squared distance between a network's outputs and the original's, linear in one layer's weight.

    A change d of the weight changes the outputs by J d to first order. The squared distance ||J d||^2 is the quadratic
    form of the Gauss-Newton matrix (of a squared loss: the Fisher matrix). With random signs v of the shape of the
    outputs it is the mean of (v^T J d)^2 (Hutchinson 1990), and one backward pass gives v^T J of all layers: every
    candidate of every layer is judged by the same few gradients. Signs of different samples are independent, so that
    what they have in common vanishes in the mean; no gradients per sample are needed.

    Every output tensor counts the same, as in `rankfold.candidates.network.NetworkProxy`, to which this is equal for
    small changes. A tensor of nothing but zeros counts as unchanged here. Infinite outputs, as masked scores are, are
    left out.

    Parameters
    ----------
    model : Module
        The original; left untouched, and copied once.
    batches : sequence
        Batches of inputs; targets are not used.
    layers : sequence of LayerInfo
        The layers that will be asked for, in that order.
    taps : sequence of str
        Modules whose outputs are compared; the network's own without any.
    draws : int
        Gradients over all batches together; of each batch at least one is taken.
    held : int
        Bytes of gradients that are held at once.
    seed : int
        Of the signs.

    Raises
    ------
    UnknownNameError
        If a tap is not a module of the model.
    ModelError
        From `alone`: if the outputs cannot be differentiated, or hold NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        layers: Sequence[LayerInfo],
        taps: Sequence[str] = (),
        *,
        draws: int = DRAWS,
        held: int = HELD,
        seed: int = 0,
    ) -> None:
        self.work = bake_weights_(copy_model(model)).requires_grad_(False)
        self.batches = batches
        self.layers = {layer.name: layer for layer in layers}
        self.taps = taps
        self.draws = max(1, -(-draws // len(batches)))
        self.held = held
        self.seed = seed
        self._energies: list[float] = []
        self._gradients: dict[str, Tensor] = {}
        check_taps(model, taps)

    def alone(self, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        """Return the loss of each of some weights of a layer, all other layers being as they are in the model."""
        kept = layer_weight(self.work, layer.name)
        totals = [0.0 for _ in weights]

        def add(gradients: Tensor) -> None:
            for i, weight in enumerate(weights):
                change = (weight - kept).reshape(-1).to(gradients.dtype)
                totals[i] += float((gradients @ change).square().sum())

        if self._bytes(layer) > self.held:  # one gradient by gradient
            self._differentiate([layer], lambda _, found: add(found[0][None]))
        else:
            if layer.name not in self._gradients:
                self._hold(self._group(layer))
            add(self._gradients[layer.name])
        if not all(map(math.isfinite, totals)):
            raise ModelError(
                f"the gradient of the network's outputs at layer {layer.name!r} holds NaN or infinity; "
                f"infinite outputs may have none. {_OTHERWISE}"
            )
        return totals

    def _bytes(self, layer: LayerInfo) -> int:
        weight = layer_weight(self.work, layer.name)
        return self.draws * len(self.batches) * weight.numel() * _precise(weight.dtype).itemsize

    def _group(self, layer: LayerInfo) -> list[LayerInfo]:
        """Return a layer and those that come after it, as many as can be held together."""
        names = list(self.layers)
        group, total = [layer], self._bytes(layer)
        for name in names[names.index(layer.name) + 1 :]:
            size = self._bytes(self.layers[name])
            if size > self.held:
                continue
            if total + size > self.held:
                break
            total += size
            group.append(self.layers[name])
        return group

    def _hold(self, layers: Sequence[LayerInfo]) -> None:
        """Keep the gradients of these layers, one a row, and forget all others."""
        self._gradients.clear()
        made: dict[str, Tensor] = {}
        for layer in layers:
            weight = layer_weight(self.work, layer.name)
            shape = (self.draws * len(self.batches), weight.numel())
            made[layer.name] = torch.empty(shape, dtype=_precise(weight.dtype), device=weight.device)

        def keep(row: int, found: Sequence[Tensor]) -> None:
            for rows, gradient in zip(made.values(), found, strict=True):
                rows[row] = gradient

        self._differentiate(layers, keep)
        self._gradients = made

    def _differentiate(self, layers: Sequence[LayerInfo], take: Callable[[int, list[Tensor]], None]) -> None:
        """Hand over the gradients of some layers, draw by draw, flat and scaled.

        The sum of (gradient . change)^2 over all of them is a change's loss. The signs are the same whichever layers
        are asked for.
        """
        energies = self._energies = self._energies or self._measure_energies()
        largest = max(energies)
        if largest <= 0:
            raise ModelError(f"the network's outputs are all zero on the calibration data; check it. {_OTHERWISE}")
        # Signs are scaled up to the tensor of most energy, not down to one: half precision would lose what they give.
        factors = [(largest / energy) ** 0.5 if energy > 0 else 0.0 for energy in energies]
        scale = (largest * len(energies) * self.draws) ** -0.5
        generator = torch.Generator().manual_seed(self.seed)
        places = [stored_weight(self.work, layer.name) for layer in layers]
        for number, batch in enumerate(track(self.batches, "computing gradients")):
            with undisturbed(self.work), _wanting_gradients([leaf for leaf, _ in places]):
                outputs, called = self._outputs(batch, f"calibration batch {number + 1}", layers)
                # Masked scores are not compared: they get the sign 0.
                scales = [(t.detach().abs() < MASKED).to(t.dtype) * f for t, f in zip(outputs, factors, strict=True)]
                for draw in track(range(self.draws), f"gradients of calibration batch {number + 1}"):
                    signs = [weights * _signs(t, generator) for t, weights in zip(outputs, scales, strict=True)]
                    found = self._backward(outputs, signs, [leaf for leaf, _ in places], draw + 1 < self.draws)
                    for layer, gradient in zip(layers, found, strict=True):
                        if gradient is None and layer.name in called and not self.taps:
                            raise ModelError(
                                f"no gradient of the network's outputs reaches layer {layer.name!r}, although it runs: "
                                f"something after it cannot be differentiated. {_OTHERWISE}"
                            )
                    take(number * self.draws + draw, [_flat(g, p, scale) for g, p in zip(found, places, strict=True)])

    def _backward(
        self, outputs: Sequence[Tensor], signs: Sequence[Tensor], leaves: Sequence[Tensor], again: bool
    ) -> Sequence[Tensor | None]:
        pairs = [(t, sign) for t, sign in zip(outputs, signs, strict=True) if t.requires_grad]
        if not pairs:  # layers that the outputs do not depend on
            return [None] * len(leaves)
        tensors, given = zip(*pairs, strict=True)
        try:
            return torch.autograd.grad(tensors, leaves, given, retain_graph=again, allow_unused=True)
        except RuntimeError as error:
            raise ModelError(f"the network's outputs cannot be differentiated: {error}\n{_OTHERWISE}") from error

    def _measure_energies(self) -> list[float]:
        """Return the squared norm of each output tensor over all batches; the outputs must depend on some weight."""
        totals: list[float] = []
        for number, batch in enumerate(self.batches, 1):
            what = f"calibration batch {number}"
            leaves = [stored_weight(self.work, name)[0] for name in self.layers] if number == 1 else []
            with undisturbed(self.work), _wanting_gradients(leaves):
                outputs, _ = self._outputs(batch, what)
                if number == 1 and not any(t.requires_grad for t in outputs):
                    raise ModelError(
                        "proxy='fisher' needs gradients, and none of the network's outputs depends on a layer's weight "
                        f"in a differentiable way. {_OTHERWISE}"
                    )
            check_comparable(outputs, what, _OTHERWISE)
            energies = [distance_and_energy(t, t)[1] for t in (output.detach() for output in outputs)]
            if not all(map(math.isfinite, energies)):
                raise ModelError(f"the network's outputs on {what} are too large to be squared. {_OTHERWISE}")
            totals = totals or [0.0] * len(energies)
            if len(totals) != len(energies):
                raise ModelError(
                    f"the network returns {len(energies)} tensors on {what}, {len(totals)} before. {_OTHERWISE}"
                )
            totals = [a + b for a, b in zip(totals, energies, strict=True)]
        return totals

    def _outputs(self, batch: Any, what: str, layers: Sequence[LayerInfo] = ()) -> tuple[list[Tensor], set[str]]:
        """Return the tensors that are compared, and which of some layers ran."""
        inputs = to_device(split_batch(batch)[0], model_device(self.work))
        called: set[str] = set()
        with tapped(self.work, self.taps) as taken, ExitStack() as hooks:
            for layer in layers:
                for module in modules_of(self.work, layer):
                    hook = module.register_forward_hook(lambda m, a, out, name=layer.name: called.add(name))  # noqa: ARG005
                    hooks.callback(hook.remove)
            output = run_batch(self.work, inputs, what, graph=True)
        tensors = float_tensors(taken if self.taps else output)
        outputs = [t.float() if t.dtype.itemsize < 4 else t for t in tensors]
        if not outputs:
            raise ModelError(f"{nothing_put_out(self.taps, what)} {_OTHERWISE}")
        return outputs, called


@contextmanager
def _wanting_gradients(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients flow to some tensors of the work copy."""
    for leaf in leaves:
        leaf.requires_grad_(True)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)


def _flat(gradient: Tensor | None, place: tuple[Tensor, Callable[[Tensor], Tensor]], scale: float) -> Tensor:
    """Return the part of a gradient that belongs to a layer, as a vector."""
    leaf, part = place
    found = torch.zeros_like(leaf) if gradient is None else gradient
    return part(found.detach()).reshape(-1).to(_precise(leaf.dtype)) * scale


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return random signs of the shape of a tensor; drawn on the CPU, so that every device has the same."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return signs.to(device=tensor.device, dtype=tensor.dtype) * 2 - 1


def _precise(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32
