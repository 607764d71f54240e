"""The results of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The results of one pass over the data; losses are means over its samples, each taken before its step."""

    epoch: int  # from 1
    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)  # the unweighted terms of the loss
    lr: float = 0.0  # of the last step
    metric: float | None = None  # after the epoch
    seconds: float = 0.0  # including the metric and, in a resumed run, the time before the interruption


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
    kept_epoch : int
        The epoch (from 1) whose weights the model has: the last, or the best with ``keep="best"``.
    stopped_early : bool
        Whether the metric reached the target before the last epoch.
    resumed_from : int or None
        The step of the checkpoint that the run resumed from; None without one. Equal to `steps` if the run had already
        finished.
    """

    model: nn.Module = field(repr=False)
    history: tuple[Epoch, ...] = ()
    steps: int = 0
    kept_epoch: int = 0
    stopped_early: bool = False
    resumed_from: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the model as JSON-ready values."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "steps": self.steps,
            "kept_epoch": self.kept_epoch,
            "stopped_early": self.stopped_early,
            "resumed_from": self.resumed_from,
        }

    @classmethod
    def from_dict(cls, model: nn.Module, values: Mapping[str, Any]) -> TuneResult:
        """Return the result that `to_dict` described, with its model."""
        history = tuple(Epoch(**epoch) for epoch in values["history"])
        return cls(model=model, history=history, **{name: v for name, v in values.items() if name != "history"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """The state after a step, for a progress callback."""

    step: int  # completed steps, over all epochs
    total: int  # planned steps
    epoch: int  # from 1
    loss: float
    lr: float
