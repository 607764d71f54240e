"""The results of the studies of a paper, on one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from rankfold.records import Ranks
from rankfold.reporting.document import Document
from rankfold.reporting.record import MetricValue, RoundRow

MODEL = "model"
PARTS = {"conv": "convolutions", "linear": "linear layers"}
"""The parts of a model: its layers of one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """The size of a model, or of a part of it."""

    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One compressed model of a study.

    Parameters
    ----------
    name : str
        What distinguishes it in the study.
    parts : mapping of str to Amounts
        Sizes of the whole model (`MODEL`), of its convolutions and of its linear layers (`PARTS`).
    metric, drop : float
        The metric, and by how much it is worse than the original's.
    seconds : mapping of str to float
        Wall-clock seconds by stage.
    before : float or None
        The metric before fine-tuning; None if the study does not compare it.
    loss : float or None
        The loss that the search minimized; None if the study does not compare it.
    ranks : mapping of str to tuple of int
        Ranks by layer, in the order of the network; empty if the study does not compare them.
    log : tuple of RoundRow
        The rounds, for strategies that log them.
    """

    name: str
    parts: Mapping[str, Amounts]
    metric: float
    drop: float
    seconds: Mapping[str, float]
    before: float | None = None
    loss: float | None = None
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    log: tuple[RoundRow, ...] = ()

    @property
    def rounds(self) -> int | None:
        """Number of models that were trained and measured to find it; None if the strategy does not tell."""
        return len(self.log) or None

    @property
    def overhead(self) -> float:
        """Seconds outside of training."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != "finetune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study of a paper.

    Parameters
    ----------
    name, title : str
        Its name on the command line, and its heading.
    dense : mapping of str to Amounts
        Sizes of the original.
    metric : MetricValue
        The metric, with its value for the original.
    allowed : float
        Largest drop of the metric.
    trials : tuple of Trial
        The compressed models.
    epoch_seconds : float or None
        Time of one training epoch, the unit of overheads; None if overheads are not compared.
    notes : tuple of str
        Remarks, and why models are missing.
    command : str
        The command that runs it.
    weights : str
        Checksum of the original's weights.
    versions : mapping of str to str
        Versions of packages.
    """

    name: str
    title: str
    dense: Mapping[str, Amounts]
    metric: MetricValue
    allowed: float
    trials: tuple[Trial, ...] = ()
    epoch_seconds: float | None = None
    notes: tuple[str, ...] = ()
    command: str = ""
    weights: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def within(self, trial: Trial) -> bool:
        """Return whether the drop of a trial is allowed; differences of metrics are rounded to nine digits."""
        return round(trial.drop, 9) <= self.allowed


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reproduction(Document):
    """The studies of a paper on one network.

    Parameters
    ----------
    paper, citation : str
        Its name on the command line, and its authors, year and title.
    model_name : str
        The network.
    studies : tuple of Study
        The finished studies.
    """

    KIND: ClassVar[str] = "reproduction"

    paper: str
    citation: str
    model_name: str
    studies: tuple[Study, ...] = ()

    def __repr__(self) -> str:
        return f"<Reproduction: {len(self.studies)} studies of {self.paper} on {self.model_name}>"

    def study(self, name: str) -> Study | None:
        """Return a study, or None if it is not finished."""
        return next((study for study in self.studies if study.name == name), None)
