"""The interface of strategies that loop: creation, training, evaluation and comparison of compressed models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NewType, Protocol

from torch import Tensor

from rankfold.records import Plan

Handle = NewType("Handle", object)
"""A compressed model, opaque to strategies."""

Batch = NewType("Batch", object)
"""A batch of calibration data, opaque to strategies."""


class Workbench(Protocol):
    """The operations of a strategy that loops.

    An operation raises `ConfigError` if it lacks data or options of the user. A strategy that declares its requirements
    (`rankfold.strategies.Strategy.needs`) is never called without them.
    """

    def apply(self, plan: Plan) -> Handle:
        """Return a copy of the original model with a plan applied."""
        ...

    def finetune(self, model: Handle) -> None:
        """Train a model in place by the user's recipe, with the original model as the teacher."""
        ...

    def evaluate(self, model: Handle | None = None) -> float:
        """Return the user's metric of a model, by default of the original model."""
        ...

    def drop(self, model: Handle) -> float:
        """Return how much worse the metric of a model is than that of the original; negative if it is better."""
        ...

    def similarity(self, model: Handle, modules: Sequence[str]) -> Mapping[str, float]:
        """Compare feature maps of a model with those of the original.

        Parameters
        ----------
        model : Handle
            A compressed model.
        modules : sequence of str
            Paths of modules in both models, such as a layer or the norm after it.

        Returns
        -------
        mapping of str to float
            The cosine similarity of the outputs of each module, -1..1, as the mean over the calibration samples. The
            outputs of all samples are never stored at once.
        """
        ...

    def keep(self, model: Handle) -> None:
        """Keep the trained model of the plan that the strategy will return.

        `rankfold.compress` then returns this model; otherwise, the plan is applied and the model is trained again.
        """
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield the calibration data, in the same order each time."""
        ...

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the task loss of the original with some weights replaced, differentiable with respect to these.

        Parameters
        ----------
        weights : mapping of str to Tensor
            Weights by layer name, in torch's layout (`LayerInfo.weight_shape`), as from `rankfold.methods.compose`.
        batch : Batch
            One of `batches`, with labels.
        """
        ...
