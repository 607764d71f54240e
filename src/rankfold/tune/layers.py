"""RENE's layer distillation: every factored layer is held near the layer that it replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankfold.errors import ModelError
from rankfold.inventory import copy_model, layer_weight
from rankfold.surgery import factored_layers
from rankfold.surgery.attention import separate_attention_


class LayerDistillation:
    """Sums of squared differences of weights and outputs over the factored layers (eq. 10).

    For a layer with original weight W and output O, approximated weight Ŵ and output D, the term
    is ‖W - Ŵ‖² / w + ‖O - D‖² / o, summed over the layers, the outputs taken over the batch. The
    paper writes w = o = 1, which makes the weight of a layer in the loss depend on its size and
    the loss on the batch size. Hence three scales:

    - ``"relative"``, the default: w = ‖W‖², o = ‖O‖² over the batch, so that each layer adds its
      two relative squared errors, from 0 to about 1 each, whatever its size and units. The one
      lambda then fits every network. (‖O‖² is taken over the global batch on several processes.)
    - ``"mean"``: the numbers of elements, as ``torch.nn.MSELoss`` has it.
    - ``"sum"``: eq. 10 to the letter, per batch; it wants a lambda orders of magnitude smaller.

    Parameters
    ----------
    student, teacher : nn.Module
        The compressed and the original network; the factored layers' names lead from one to the
        other. Both get forward hooks until `close`.
    scale : {"relative", "mean", "sum"}
        See above.
    reduce : callable
        Sums a tensor over all processes.

    Raises
    ------
    ModelError
        If the student has no factored layer, or the teacher lacks one of the layers.

    References
    ----------
    RENE, section 4.4, equations 10 and 11.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        scale: str,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._layers = factored_layers(student)
        if not self._layers:
            raise ModelError(
                "loss term 'layer' compares factored layers, but the model has none. Compress it "
                "first (and do not strip it), or choose another loss."
            )
        self._scale, self._reduce = scale, reduce
        self.teacher = _with_projections(teacher, list(self._layers))
        self._weights: dict[str, Tensor] = {}
        self._outputs: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._energy: dict[str, Tensor] = {}
        self._errors: list[Tensor] = []
        self._samples, self._total = 1, 1
        self._listening = False  # a metric may run both networks as well
        self._handles: list[RemovableHandle] = []
        for name, layer in self._layers.items():
            try:
                original = self.teacher.get_submodule(name)
                weight = layer_weight(self.teacher, name)
            except (AttributeError, ValueError) as error:
                raise ModelError(
                    f"the teacher has no layer {name!r}, which the model has factored. The teacher "
                    "must be the network that the model was compressed from."
                ) from error
            if tuple(weight.shape) != layer.info.weight_shape:
                raise ModelError(
                    f"layer {name!r} has a weight of shape {layer.info.weight_shape} in the model "
                    f"and {tuple(weight.shape)} in the teacher. The teacher must be the network "
                    "that the model was compressed from."
                )
            self._weights[name] = weight.clone().float()
            self._handles.append(original.register_forward_hook(partial(self._record, name)))
            self._handles.append(layer.register_forward_hook(partial(self._compare, name)))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def begin(self, samples: int, total: int) -> None:
        """Forget the last batch; `samples` of this process's batch, `total` over all processes."""
        self._samples, self._total = samples, total
        self._listening = True
        self._errors.clear()
        self._energy.clear()
        for outputs in self._outputs.values():
            outputs.clear()

    def after_teacher(self, active: bool) -> None:
        """Measure ‖O‖² per sample; between the two networks' forward passes.

        A process that holds no share of the batch (not `active`) adds nothing.
        """
        if self._scale != "relative":
            return
        sums = [
            torch.stack([o.float().square().sum() for o in outputs]).sum()
            if outputs
            else torch.zeros((), device=self._weights[name].device)
            for name, outputs in self._outputs.items()
        ]
        energy = self._reduce(torch.stack(sums) * float(active)) / self._total
        energy = torch.where(energy > 0, energy, 1.0)  # a dead layer: the plain squared error
        self._energy = dict(zip(self._outputs, energy, strict=True))

    def term(self) -> Tensor:
        """Return the whole term; after both forward passes."""
        self._listening = False
        left = [name for name, outputs in self._outputs.items() if outputs]
        if left:
            raise ModelError(
                f"layer {left[0]!r} ran more often in the teacher than in the model, so their "
                "outputs cannot be compared. The teacher must be the network that the model was "
                "compressed from."
            )
        device = next(iter(self._weights.values())).device
        total = torch.zeros((), device=device)
        # Products of factors lose too many digits in half precision.
        with torch.autocast(device.type, enabled=False):
            for name, layer in self._layers.items():
                original = self._weights[name]
                error = (original - layer.dense_weight().float()).square().sum()
                total = total + error / self._weight_scale(original)
        for error in self._errors:
            total = total + error
        return total

    def _weight_scale(self, weight: Tensor) -> Tensor | float:
        if self._scale == "relative":
            energy = weight.square().sum()
            return torch.where(energy > 0, energy, 1.0)
        return float(weight.numel()) if self._scale == "mean" else 1.0

    def _record(self, name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._listening:
            self._outputs[name].append(output.detach())

    def _compare(self, name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not self._listening:
            return
        outputs = self._outputs[name]
        if not outputs or outputs[0].shape != output.shape:
            theirs = tuple(outputs[0].shape) if outputs else "nothing"
            raise ModelError(
                f"layer {name!r} gave {tuple(output.shape)} in the model and {theirs} in the "
                "teacher. The teacher must be the network that the model was compressed from."
            )
        error = (outputs.pop(0).float() - output.float()).square().sum()
        # Each process's share of a mean over samples, so that processes can be averaged.
        if self._scale == "relative":
            scale = self._energy[name] * self._samples
        elif self._scale == "mean":
            scale = float(output.numel())
        else:
            scale = self._samples / self._total
        self._errors.append(error / scale)


def _with_projections(teacher: nn.Module, names: list[str]) -> nn.Module:
    """Return the teacher, as a copy with separate projections where such a one was factored.

    An ``nn.MultiheadAttention`` computes its projections without calling a module that a hook
    could listen to.
    """
    paths = {name.rpartition(".")[0] for name in names}
    packed = [
        path for path, module in teacher.named_modules() if path in paths and isinstance(module, nn.MultiheadAttention)
    ]
    if not packed:
        return teacher
    twin = copy_model(teacher)
    for path in packed:
        separate_attention_(twin, path)
    return twin
