"""Loss of a layer's candidates in the outputs of the network, to second order, from gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold._progress import track
from rankfold._tensors import model_device, to_device
from rankfold.batches import batch_size, pieces, split_batch
from rankfold.candidates.network import PlainCopy
from rankfold.candidates.outputs import (
    check_comparable,
    check_taps,
    data_tensors,
    modules_of,
    nothing_put_out,
    tapped,
)
from rankfold.errors import ModelError
from rankfold.inventory import Spare, layer_weight, run_batch, stored_weight, undisturbed
from rankfold.outputs import MASKED, distance_and_energy
from rankfold.records import LayerInfo

DRAWS = 64
"""Least number of gradients over all batches. With n gradients, the relative standard deviation of a loss is at most
about sqrt(2 / n), and that of the ratio of two candidates of a layer, which share them, is much less."""
FEWEST_DRAWS = 32
"""The same if there are few samples, of which each has two gradients: the choice of samples then matters more."""
HELD = 2**29
"""Bytes of gradients held at once; further layers take further passes. A layer with more is computed in parts of this
size, while the gradients of other layers are held."""
TOGETHER = 8
"""Changes of a weight that are multiplied by the gradients at once, so that these are read once for all."""


def draws_for(samples: int) -> int:
    """Return the least number of gradients over some samples."""
    return min(DRAWS, max(FEWEST_DRAWS, 2 * samples))


def piece_size(samples: int, draws: int) -> int:
    """Return the samples of a piece, over which one gradient is taken."""
    return max(1, samples // draws)


def draws_each(pieces: int, draws: int) -> int:
    """Return the gradients of a piece."""
    return max(1, -(-draws // pieces))


def groups(sizes: Sequence[int], held: int = HELD) -> list[list[int]]:
    """Return the indices of the layers whose gradients one pass yields; `sizes` are the bytes of their gradients.

    A layer with more than `held` bytes is alone. Other layers are together with their predecessors if they fit.
    """
    result, last, total = list[list[int]](), list[int](), 0
    for index, size in enumerate(sizes):
        if size > held:
            result.append([index])
            continue
        if not last or total + size > held:
            last, total = [], 0
            result.append(last)
        last.append(index)
        total += size
    return result


def _otherwise() -> str:
    """Return what to do if outputs cannot be differentiated."""
    other = f"{spelled('proxy', 'network')} needs no gradients"
    return f"{other}. Alternatively, compare the outputs of other modules ({spelled('taps', ...)})."


class FisherProxy:
    """Relative squared distance between a network's outputs and the original's, linear in one layer's weight.

    A change d of the weight changes the outputs by J d to first order. The squared distance ||J d||^2 is the quadratic
    form of the Gauss-Newton matrix (for a squared loss, the Fisher matrix). For random signs v of the shape of the
    outputs it is the mean of (v^T J d)^2 (Hutchinson 1990), and one backward pass yields v^T J for all layers: all
    candidates of all layers share a few gradients. Signs of different samples are independent, so that cross terms
    vanish in the mean and no gradients per sample are needed. Each gradient is taken over a few samples only, so that
    one forward and one backward pass over the data yield all of them.

    All output tensors have the same weight, as in `rankfold.candidates.network.NetworkProxy`, to which this proxy is
    equal for small changes. A tensor of zeros counts as unchanged, and infinite outputs, such as masked scores, are
    ignored.

    Parameters
    ----------
    model : Module
        The original model; not modified, and copied once.
    batches : sequence
        Batches of inputs; targets are ignored.
    layers : sequence of LayerInfo
        The layers in the order in which `losses` is called.
    taps : sequence of str
        Modules whose outputs are compared; by default the network's outputs.
    draws : int or None
        Least number of gradients, at least one per batch; by default that of `draws_for`.
    held : int
        Bytes of gradients held at once, and of a part of the gradients of a layer that has more.
    seed : int
        Random seed of the signs.
    spare : Spare, optional
        A copy of the model to work on.

    Raises
    ------
    UnknownNameError
        If a tap is not a module of the model.
    ModelError
        In `losses`, if the outputs cannot be differentiated or contain NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        layers: Sequence[LayerInfo],
        taps: Sequence[str] = (),
        *,
        draws: int | None = None,
        held: int = HELD,
        seed: int = 0,
        spare: Spare | None = None,
    ) -> None:
        self._copy = PlainCopy(model, spare)
        self.batches = batches
        inputs = [split_batch(batch)[0] for batch in batches]
        samples = sum(map(batch_size, inputs))
        draws = draws or draws_for(samples)
        size = piece_size(samples, draws)
        self.pieces = [piece for whole in inputs for piece in pieces(whole, size)]
        self.layers = {layer.name: layer for layer in layers}
        self.taps = taps
        self.draws = draws_each(len(self.pieces), draws)
        self.held = held
        self.seed = seed
        self._energies: list[float] = []
        self._gradients: dict[str, Tensor] = {}
        check_taps(model, taps)

    @property
    def work(self) -> nn.Module:
        """The copy that is differentiated; all its weights are plain tensors."""
        return self._copy.lend()

    def losses(self, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        """Return the loss of each of several weights of a layer, all other layers unchanged."""
        kept = layer_weight(self.work, layer.name)
        totals = [0.0 for _ in weights]

        def add(gradients: Tensor) -> None:
            step = max(1, min(TOGETHER, self.held // (gradients.shape[1] * gradients.element_size())))
            for first in range(0, len(weights), step):
                some = weights[first : first + step]
                changes = gradients.new_empty(len(some), gradients.shape[1])
                for change, weight in zip(changes, some, strict=True):
                    change.copy_((weight - kept).reshape(-1))
                for i, total in enumerate((changes @ gradients.T).square().sum(1).tolist(), first):
                    totals[i] += total

        if self._bytes(layer) > self.held:  # in several parts
            self._in_parts(layer, add)
        else:
            if layer.name not in self._gradients:
                self._hold(self._groups[layer.name])
            add(self._gradients[layer.name])
        if not all(map(math.isfinite, totals)):
            raise ModelError(
                f"the gradient of the network's outputs at layer {layer.name!r} contains NaN or infinity, possibly "
                f"because of infinite outputs. {_otherwise()}"
            )
        return totals

    def run(self) -> None:
        """Compute the gradients of all layers, and keep none of them."""
        self._differentiate(list(self.layers.values()), lambda row, gradients: None)  # noqa: ARG005

    def _bytes(self, layer: LayerInfo) -> int:
        weight = layer_weight(self.work, layer.name)
        return self.draws * len(self.pieces) * weight.numel() * _precise(weight.dtype).itemsize

    def _in_parts(self, layer: LayerInfo, take: Callable[[Tensor], None]) -> None:
        """Pass the gradients of a layer to `take`, one per row, as many at a time as can be held."""
        weight = layer_weight(self.work, layer.name)
        total = self.draws * len(self.pieces)
        rows = max(1, total * self.held // self._bytes(layer))
        part = torch.empty((rows, weight.numel()), dtype=_precise(weight.dtype), device=weight.device)

        def keep(row: int, gradients: Sequence[Tensor]) -> None:
            part[row % rows] = gradients[0]
            if (row + 1) % rows == 0 or row + 1 == total:
                take(part[: row % rows + 1])

        self._differentiate([layer], keep)

    @cached_property
    def _groups(self) -> dict[str, list[LayerInfo]]:
        """The layers whose gradients are held together, by the name of each."""
        layers = list(self.layers.values())
        together = groups([self._bytes(layer) for layer in layers], self.held)
        return {layers[i].name: [layers[j] for j in group] for group in together for i in group}

    def _hold(self, layers: Sequence[LayerInfo]) -> None:
        """Keep the gradients of these layers, one per row, and drop all others."""
        self._gradients.clear()
        matrices: dict[str, Tensor] = {}
        for layer in layers:
            weight = layer_weight(self.work, layer.name)
            shape = (self.draws * len(self.pieces), weight.numel())
            matrices[layer.name] = torch.empty(shape, dtype=_precise(weight.dtype), device=weight.device)

        def keep(row: int, gradients: Sequence[Tensor]) -> None:
            for matrix, gradient in zip(matrices.values(), gradients, strict=True):
                matrix[row] = gradient

        self._differentiate(layers, keep)
        self._gradients = matrices

    def _differentiate(self, layers: Sequence[LayerInfo], take: Callable[[int, list[Tensor]], None]) -> None:
        """Pass the flat, scaled gradients of some layers to `take`, draw by draw.

        The loss of a change is the sum of (gradient . change)^2 over all draws. The signs do not depend on the layers.
        """
        energies = self._energies = self._energies or self._measure_energies()
        largest = max(energies)
        if largest <= 0:
            raise ModelError(
                f"the network's outputs are all zero on the calibration data. Check the data. {_otherwise()}"
            )
        # Signs are scaled relative to the largest energy: gradients of smaller signs would underflow in half precision.
        factors = [(largest / energy) ** 0.5 if energy > 0 else 0.0 for energy in energies]
        scale = (largest * len(energies) * self.draws) ** -0.5
        generator = torch.Generator().manual_seed(self.seed)
        places = [stored_weight(self.work, layer.name) for layer in layers]
        for number, piece in enumerate(track(self.pieces, "computing gradients")):
            with undisturbed(self.work), _wanting_gradients([leaf for leaf, _ in places]):
                outputs, called = self._outputs(piece, "the calibration samples", layers)
                # Masked scores are ignored: their sign is 0.
                scales = [(t.detach().abs() < MASKED).to(t.dtype) * f for t, f in zip(outputs, factors, strict=True)]
                for draw in range(self.draws):
                    signs = [weights * _signs(t, generator) for t, weights in zip(outputs, scales, strict=True)]
                    gradients = self._backward(outputs, signs, [leaf for leaf, _ in places], draw + 1 < self.draws)
                    for layer, gradient in zip(layers, gradients, strict=True):
                        if gradient is None and layer.name in called and not self.taps:
                            raise ModelError(
                                f"no gradient of the network's outputs reaches layer {layer.name!r}, although it runs: "
                                f"a later operation cannot be differentiated. {_otherwise()}"
                            )
                    flat = [_flat(g, p, scale) for g, p in zip(gradients, places, strict=True)]
                    take(number * self.draws + draw, flat)

    def _backward(
        self, outputs: Sequence[Tensor], signs: Sequence[Tensor], leaves: Sequence[Tensor], again: bool
    ) -> Sequence[Tensor | None]:
        pairs = [(t, sign) for t, sign in zip(outputs, signs, strict=True) if t.requires_grad]
        if not pairs:  # the outputs do not depend on the layers
            return [None] * len(leaves)
        tensors, given = zip(*pairs, strict=True)
        try:
            return torch.autograd.grad(tensors, leaves, given, retain_graph=again, allow_unused=True)
        except RuntimeError as error:
            raise ModelError(f"the network's outputs cannot be differentiated: {error}\n{_otherwise()}") from error

    def _measure_energies(self) -> list[float]:
        """Return the squared norm of each output tensor over all batches, after checking the outputs."""
        totals: list[float] = []
        for number, batch in enumerate(self.batches, 1):
            what = f"calibration batch {number}"
            leaves = [stored_weight(self.work, name)[0] for name in self.layers] if number == 1 else []
            with undisturbed(self.work), _wanting_gradients(leaves):
                outputs, _ = self._outputs(split_batch(batch)[0], what)
                if number == 1 and not any(t.requires_grad for t in outputs):
                    raise ModelError(
                        f"{spelled('proxy', 'fisher')} needs gradients, but no output of the network is a "
                        f"differentiable function of a layer's weight. {_otherwise()}"
                    )
            check_comparable(outputs, what, _otherwise())
            energies = [distance_and_energy(t, t)[1] for t in (output.detach() for output in outputs)]
            if not all(map(math.isfinite, energies)):
                raise ModelError(f"the network's outputs on {what} are too large to be squared. {_otherwise()}")
            totals = totals or [0.0] * len(energies)
            if len(totals) != len(energies):
                raise ModelError(
                    f"the network returns {len(energies)} tensors on {what}, {len(totals)} before. {_otherwise()}"
                )
            totals = [a + b for a, b in zip(totals, energies, strict=True)]
        return totals

    def _outputs(self, inputs: Any, what: str, layers: Sequence[LayerInfo] = ()) -> tuple[list[Tensor], set[str]]:
        """Return the compared tensors, and which of some layers ran."""
        inputs = to_device(inputs, model_device(self.work))
        called: set[str] = set()
        with tapped(self.work, self.taps) as taken, ExitStack() as hooks:
            for layer in layers:
                for module in modules_of(self.work, layer):
                    hook = module.register_forward_hook(lambda m, a, out, name=layer.name: called.add(name))  # noqa: ARG005
                    hooks.callback(hook.remove)
            output = run_batch(self.work, inputs, what, graph=True)
        tensors = data_tensors(self.work, inputs, taken if self.taps else output)
        outputs = [t.float() if t.dtype.itemsize < 4 else t for t in tensors]
        if not outputs:
            raise ModelError(f"{nothing_put_out(self.taps, what)} {_otherwise()}")
        return outputs, called


@contextmanager
def _wanting_gradients(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Enable gradients of some tensors of the work copy."""
    for leaf in leaves:
        leaf.requires_grad_(True)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)


def _flat(gradient: Tensor | None, place: tuple[Tensor, Callable[[Tensor], Tensor]], scale: float) -> Tensor:
    """Return a layer's part of a gradient as a vector."""
    leaf, part = place
    whole = torch.zeros_like(leaf) if gradient is None else gradient
    return part(whole.detach()).reshape(-1).to(_precise(leaf.dtype)) * scale


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return random signs of the shape of a tensor, drawn on the CPU so that they do not depend on the device."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return signs.to(device=tensor.device, dtype=tensor.dtype) * 2 - 1


def _precise(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32
