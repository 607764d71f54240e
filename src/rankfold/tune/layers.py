"""RENE's layer distillation: every factored layer is kept close to the layer that it replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError
from rankfold.inventory import layer_weight
from rankfold.inventory.narrowing import narrowed_weight
from rankfold.surgery import factored_layers
from rankfold.surgery.factored import Factored
from rankfold.tune.config import FineTune
from rankfold.tune.narrowed import Narrowed
from rankfold.tune.terms import WRONG_TEACHER, Step, Term, terms


@dataclass(kw_only=True, eq=False)
class LayerDistillation(Term):
    """Squared differences of weights and outputs, summed over the factored layers (eq. 10).

    For a layer with original weight W and output O, approximated weight Ŵ and output D, the term is ‖W - Ŵ‖² / w + ‖O -
    D‖² / o, summed over the layers; the outputs are those of the batch. The paper sets w = o = 1, so that the loss
    depends on the batch size and on the sizes of the layers. Hence three scales:

    - ``"relative"``, the default: w = ‖W‖², o = ‖O‖² over the global batch. Each layer adds two relative squared
      errors, from 0 to about 1 each, whatever its size and units, and one lambda suits every network.
    - ``"mean"``: the numbers of elements, as in ``torch.nn.MSELoss``.
    - ``"sum"``: the paper's eq. 10, per batch; it needs a lambda that is orders of magnitude smaller.

    Parameters
    ----------
    scale : {"relative", "mean", "sum"}
        Scale of the squared norms: one of the three above.
    weight : float
        The lambda of eq. 11.

    Raises
    ------
    ModelError
        From `start`: if the student has no factored layer, or the teacher lacks one of the layers.

    References
    ----------
    RENE, section 4.4, equations 10 and 11.
    """

    name = "layer"
    needs_teacher = True
    scale: Literal["relative", "mean", "sum"] = "relative"
    weight: float = 0.5
    _layers: dict[str, Factored] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _energy: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _errors: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(cls, config: FineTune) -> Self:
        """Return the term of a config."""
        return cls(scale=config.layer_scale, weight=config.layer_weight)

    def start(self, student: nn.Module, teacher: nn.Module | None) -> Iterable[str]:
        """Look up the factored layers and the weights that they replaced."""
        assert teacher is not None
        self._layers = factored_layers(student)
        if not self._layers:
            raise ModelError(
                "the loss term 'layer' compares factored layers, but the model has none. Compress it "
                "first (and do not strip it), or choose another loss."
            )
        narrowed = Narrowed(student, teacher)
        self._weights = {name: _original(teacher, name, layer, narrowed) for name, layer in self._layers.items()}
        return self._layers

    def teacher_ran(self, step: Step, outputs: Mapping[str, Sequence[Tensor]]) -> None:
        """Measure ‖O‖² per sample; an inactive process adds nothing."""
        self._errors.clear()
        if self.scale != "relative":
            return
        sums = [
            torch.stack([o.float().square().sum() for o in outputs[name]]).sum()
            if outputs[name]
            else torch.zeros((), device=weight.device)
            for name, weight in self._weights.items()
        ]
        energy = _positive(step.sum(torch.stack(sums) * float(step.active)) / step.total)
        self._energy = dict(zip(self._weights, energy, strict=True))

    def compare(self, step: Step, path: str, ours: Tensor, theirs: Tensor) -> None:
        """Add this process's part of a mean over samples, so that processes can be averaged."""
        error = (theirs.float() - ours.float()).square().sum()
        if self.scale == "relative":
            scale = self._energy[path] * step.samples
        elif self.scale == "mean":
            scale = float(ours.numel())
        else:
            scale = step.samples / step.total
        self._errors.append(error / scale)

    def loss(self, step: Step) -> Tensor:  # noqa: ARG002
        """Return the sum over weights and outputs."""
        device = next(iter(self._weights.values())).device
        total = torch.zeros((), device=device)
        # Products of factors lose too much precision in half precision.
        with torch.autocast(device.type, enabled=False):
            for name, layer in self._layers.items():
                original = self._weights[name]
                error = (original - layer.dense_weight().float()).square().sum()
                total = total + error / self._weight_scale(original)
        for error in self._errors:
            total = total + error
        return total

    def _weight_scale(self, weight: Tensor) -> Tensor | float:
        if self.scale == "relative":
            return _positive(weight.square().sum())
        return float(weight.numel()) if self.scale == "mean" else 1.0


terms.register(LayerDistillation, summary="every factored layer near its original")


def _positive(energy: Tensor) -> Tensor:
    """Return the energy, or 1 where it is 0: for a dead layer, the plain squared error counts."""
    return torch.where(energy > 0, energy, 1.0)


def _original(teacher: nn.Module, name: str, layer: Factored, narrowed: Narrowed) -> Tensor:
    """Return the weight that a factored layer replaced, without the channels that were removed from the layer."""
    try:
        weight = layer_weight(teacher, name)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"the teacher lacks the layer {name!r}, which the model has factored. {WRONG_TEACHER}"
        ) from error
    lost = narrowed.of(name)
    if lost is not None:
        weight = narrowed_weight(weight, *lost)
    if tuple(weight.shape) != layer.info.weight_shape:
        raise ModelError(
            f"layer {name!r} has a weight of shape {layer.info.weight_shape} in the model and {tuple(weight.shape)} in "
            f"the teacher. {WRONG_TEACHER}"
        )
    return weight.clone().float()
