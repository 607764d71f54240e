"""What a strategy that loops works with: models that it makes, trains, measures and compares without touching them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NewType, Protocol

from torch import Tensor

from rankfold.records import Plan

Handle = NewType("Handle", object)
"""A compressed model; only the workbench looks inside."""

Batch = NewType("Batch", object)
"""A batch of calibration data; only the workbench looks inside."""


class Workbench(Protocol):
    """The operations of a strategy that loops.

    What needs something that the user did not give raises `ConfigError`; a strategy that says what it needs
    (`rankfold.strategies.Strategy.needs`) is never called without it.
    """

    def apply(self, plan: Plan) -> Handle:
        """Return a copy of the original with a plan applied."""
        ...

    def finetune(self, model: Handle) -> None:
        """Train a model in place, by the user's recipe and with the original as the teacher."""
        ...

    def evaluate(self, model: Handle | None = None) -> float:
        """Return the user's metric of a model; of the original without one."""
        ...

    def drop(self, model: Handle) -> float:
        """Return by how much the metric of a model is worse than that of the original; negative if it is better."""
        ...

    def similarity(self, model: Handle, modules: Sequence[str]) -> Mapping[str, float]:
        """Compare feature maps with the original's.

        Parameters
        ----------
        model : Handle
            A model.
        modules : sequence of str
            Paths of modules that the model and the original have, such as a layer's or that of the norm after it.

        Returns
        -------
        mapping of str to float
            For each module, the cosine similarity of its outputs in the two networks, -1..1: the mean over the
            calibration samples. The outputs of all samples are never held at once.
        """
        ...

    def keep(self, model: Handle) -> None:
        """Hand in the model that belongs to the plan that the strategy is going to return.

        `rankfold.compress` returns this model as it was trained. Without it, the plan is applied and trained again.
        """
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield the calibration data, in the same order each time."""
        ...

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the task loss of the original with some layers' weights replaced; differentiable in these weights.

        Parameters
        ----------
        weights : mapping of str to Tensor
            By layer name, in torch's layout (`LayerInfo.weight_shape`), such as `rankfold.methods.compose` returns.
        batch : Batch
            One of `batches`, with labels.
        """
        ...
