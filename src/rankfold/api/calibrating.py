"""Calibration data of one model, and its second moments, collected once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from rankfold.batches import LeadingBatches, MatchedBatches, iterate, split_batch
from rankfold.calibration import LayerMoments, collect_moments
from rankfold.inventory import evaluating
from rankfold.records import LayerInfo


class Calibration:
    """Batches that can be read more than once, and the second moments of a model's layers on them.

    Parameters
    ----------
    model : Module
        The original.
    data : iterable
        Batches; the items of an iterator are kept.
    example_input : object, optional
        What the model is called with. Every batch is compared with it (`rankfold.batches.MatchedBatches`).
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], example_input: Any = None) -> None:
        self._model = model
        again = list(data) if isinstance(data, Iterator) else data
        self.batches = again if example_input is None else MatchedBatches(again, example_input, "calibration")
        self._moments = LayerMoments()
        self._seen: set[str] = set()

    def of(self, model: nn.Module) -> Calibration:
        """Return the same data for another model, such as a narrowed one."""
        return Calibration(model, self.batches)

    def leading(self, samples: int) -> Calibration:
        """Return the first samples of the data, whose second moments are collected separately."""
        return Calibration(self._model, LeadingBatches(self.batches, samples, "calibration"))

    def moments(self, layers: Sequence[LayerInfo]) -> LayerMoments:
        """Return the second moments of the inputs of these layers, and of all layers requested before."""
        missing = [layer for layer in layers if layer.name not in self._seen]
        if missing:
            new = collect_moments(self._model, self.batches, missing)
            unreached = (*self._moments.unreached, *new.unreached)
            padded = (*self._moments.padded, *new.padded)
            self._moments = LayerMoments({**self._moments, **new})
            self._moments.unreached, self._moments.padded = unreached, padded
            self._seen |= {layer.name for layer in missing}
        return self._moments

    def forget(self) -> None:
        """Free the second moments."""
        self._moments, self._seen = LayerMoments(), set()

    def first_batch(self) -> tuple[Any, Any | None]:
        """Return inputs and target of the first batch; torch's random state, which data may draw from, is restored."""
        with evaluating(self._model):
            return split_batch(next(iterate(self.batches, "calibration")))


def calibration_of(model: nn.Module, data: Iterable[Any] | None, example_input: Any = None) -> Calibration | None:
    """Return the calibration data, or None where there is none."""
    return None if data is None else Calibration(model, data, example_input)
