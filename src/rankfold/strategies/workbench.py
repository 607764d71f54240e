"""The interface of strategies that loop: creation, training, evaluation and comparison of compressed models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NewType, Protocol

from torch import Tensor

from rankfold.calibration import Place
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

    def apply(self, plan: Plan, *, like: Handle | None = None) -> Handle:
        """Return a copy of the original model with a plan applied.

        With `like`, layers that have the same factors in that model, and everything outside of factored layers,
        continue from its values instead of the original's.
        """
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

    def places(self, layers: Sequence[str]) -> Mapping[str, Place]:
        """Return where feature maps of layers are compared; layers that no calibration sample reaches are left out."""
        ...

    def similarity(self, model: Handle, layers: Sequence[str], *, samples: int = 1000) -> Mapping[str, float]:
        """Compare the feature maps of layers with those of the original.

        Parameters
        ----------
        model : Handle
            A compressed model.
        layers : sequence of str
            Names of layers.
        samples : int
            Calibration samples that are compared at most.

        Returns
        -------
        mapping of str to float
            By layer, the mean cosine similarity of its feature maps, -1..1, each layer with the original's input; see
            `rankfold.calibration.similarities`.
        """
        ...

    def keep(self, model: Handle, *, rounds: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep the trained model of the plan that the strategy will return.

        `rankfold.compress` then returns this model; otherwise, the plan is applied and the model is trained again.
        `rounds` is a log of the loop for the report, as JSON values.
        """
        ...

    def remember(self, name: str, state: Mapping[str, Any], model: Handle) -> None:
        """Save the state of a loop, as JSON values, with a model, if there is a cache folder."""
        ...

    def recall(self, name: str) -> tuple[dict[str, Any], Handle] | None:
        """Return the state and the model that an interrupted run of the same search saved last under this name."""
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
