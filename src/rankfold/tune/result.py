"""The results of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One pass over the data.

    Parameters
    ----------
    epoch : int
        Number of the epoch, from 1.
    loss : float
        Mean over the epoch's samples, each measured before the step that it contributed to.
    terms : mapping
        The same for each term of the loss, unweighted.
    lr : float
        Learning rate of the last step.
    metric : float or None
        The metric after the epoch.
    seconds : float
        Duration, including the metric and (in a resumed run) the time before the interruption.
    """

    epoch: int
    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)
    lr: float = 0.0
    metric: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as JSON-ready values."""
        return {**asdict(self), "terms": dict(self.terms)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """A fine-tuned model and its training history.

    Parameters
    ----------
    model : nn.Module
        The trained model, on its original device and in its original training mode.
    history : tuple of Epoch
        One entry per epoch.
    steps : int
        Total number of optimizer steps, including those before an interruption.
    stopped_early : bool
        Whether the metric reached the target before the last epoch.
    resumed_from : int or None
        The step of the checkpoint that the run resumed from; None without one. Equal to `steps` if the run had already
        finished.
    """

    model: nn.Module = field(repr=False)
    history: tuple[Epoch, ...] = ()
    steps: int = 0
    stopped_early: bool = False
    resumed_from: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the model as JSON-ready values."""
        return {
            "history": [epoch.to_dict() for epoch in self.history],
            "steps": self.steps,
            "stopped_early": self.stopped_early,
            "resumed_from": self.resumed_from,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """The state that a progress callback receives after each step.

    Parameters
    ----------
    step, total : int
        Completed and planned steps, over all epochs.
    epoch : int
        Number of the epoch, from 1.
    loss, lr : float
        Loss and learning rate of the step.
    """

    step: int
    total: int
    epoch: int
    loss: float
    lr: float
