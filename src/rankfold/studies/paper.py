"""What the studies of all papers share: their input, the sizes of compressed models, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold._hashing import state_hash
from rankfold._progress import track
from rankfold._version import __version__
from rankfold.api.compressing import compress
from rankfold.api.realizing import Result, metric_value, realize
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.evaluation import Metric, evaluate
from rankfold.inventory import inspect
from rankfold.records import Budget, Cost, Inventory, Plan
from rankfold.reporting import MetricValue
from rankfold.reporting.studies import Amounts, Reproduction, Study, Trial
from rankfold.reporting.studies.record import MODEL, PARTS
from rankfold.strategies import Strategy
from rankfold.tune import FineTune


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A smaller network that learns from the studied one.

    Parameters
    ----------
    name : str
        Name of the network.
    model : Module
        The network, with the weights from which it learns.
    trained : bool
        Whether these are trained weights.
    epochs : int
        Passes over the training data.
    """

    name: str
    model: nn.Module
    trained: bool
    epochs: int


@dataclass(kw_only=True)
class Setup:
    """What the studies of a paper work on.

    Parameters
    ----------
    model, example_input, calibration, metric, recipe
        As `model`, `example_input`, `calibration`, `evaluate` and `finetune` of `rankfold.compress`.
    strategy : Strategy
        The paper's strategy, with the options that apply to all studies.
    drop : float
        Largest drop of the metric.
    cache : Path
        Folder from which interrupted searches resume.
    methods : tuple of str or None
        Factorizations of the studies that compare them; None for those of the paper.
    seed : int
        Random seed.
    budget : Budget or None
        Upper bounds, for papers whose studies have a budget.
    student : Student or None
        For papers that distil the model into a smaller one.
    """

    model: nn.Module
    example_input: Any
    calibration: Iterable[Any]
    metric: Metric
    recipe: FineTune
    strategy: Strategy
    drop: float
    cache: Path
    methods: tuple[str, ...] | None = None
    seed: int = 0
    budget: Budget | None = None
    student: Student | None = None

    @cached_property
    def inventory(self) -> Inventory:
        """The layers of the original."""
        return inspect(self.model, self.example_input)

    @cached_property
    def dense(self) -> MetricValue:
        """The metric of the original."""
        return metric_value(self.metric, {"dense": evaluate(self.model, self.metric)})

    def compress(self, strategy: str | Strategy, **options: Any) -> Result:
        """Compress the model with a strategy, and fine-tune it unless `options` say otherwise."""
        shared: dict[str, Any] = {
            "calibration": self.calibration, "evaluate": self.metric, "finetune": self.recipe, "cache": self.cache,
            "seed": self.seed,
        }  # fmt: skip
        return compress(self.model, self.example_input, strategy=strategy, **{**shared, **options})

    def realize(self, plan: Plan) -> Result:
        """Carry out a plan on the model, and fine-tune it."""
        return realize(
            self.model, self.example_input, plan, calibration=self.calibration, evaluate=self.metric,
            finetune=self.recipe,
        )  # fmt: skip

    def parts(self, costs: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Amounts]:
        """Return the sizes of the model and its parts; `costs` has the parameters and MACs of changed layers."""
        dense = self.inventory.costs
        now = {**{name: (cost.params, cost.macs) for name, cost in dense.items()}, **(costs or {})}
        parts = {
            kind: _sum([now[layer.name] for layer in self.inventory if layer.kind == kind and layer.name in now])
            for kind in PARTS
        }
        rest = self.inventory.total - sum(dense.values(), Cost())
        model = _sum([(rest.params, rest.macs), *((part.params, part.macs) for part in parts.values())])
        return {MODEL: model, **parts}

    def trial(self, name: str, result: Result) -> Trial:
        """Return a result as a row of a study."""
        report, metric = result.report, result.report.metrics[0]
        parts = self.parts({row.name: (row.after.params, row.after.macs) for row in report.layers})
        # Other modules become smaller with the channels around them, too.
        parts[MODEL] = Amounts(params=report.after.params, macs=report.after.macs)
        return Trial(name=name, parts=parts, metric=metric.final, drop=metric.drop or 0.0, seconds=report.timings)

    def runs(self, result: Result) -> Iterator[Trial]:
        """Yield the result of each run of a strategy that logs rounds."""
        for run, group in groupby(result.report.rounds, key=lambda row: row.run):
            rounds = list(group)
            seconds: dict[str, float] = {}
            for row in rounds:
                for stage, value in row.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
            last = rounds[-1]
            yield Trial(
                name=run, parts=self.parts(last.costs), metric=last.metric, drop=last.drop, seconds=seconds,
                log=tuple(rounds),
            )  # fmt: skip

    def study(
        self,
        name: str,
        title: str,
        trials: Mapping[str, Callable[[], Iterable[Trial]]],
        *,
        notes: Sequence[str] = (),
        epoch_seconds: float | None = None,
    ) -> Study:
        """Run the searches of a study, given by name; one that cannot meet its bound is noted."""
        rows: list[Trial] = []
        missing: list[str] = []
        for label, search in track(trials.items(), name):
            try:
                rows += search()
            except InfeasibleBudget as error:
                missing.append(f"{label}: {str(error).partition(chr(10))[0]}")
        return Study(
            name=name, title=title, dense=self.parts(), metric=self.dense, allowed=self.drop, trials=tuple(rows),
            epoch_seconds=epoch_seconds, notes=(*notes, *missing),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A paper with its studies.

    Parameters
    ----------
    name, citation : str
        Its name on the command line, and its authors, year and title.
    strategy : str
        The strategy that its studies use.
    network, weights, data : str
        What is studied by default.
    studies : mapping of str to callable
        ``study(setup)`` returns the finished study; by name, in the order of the document.
    budget : str or None
        Default budget; None if no study has one.
    student : str or None
        The network that the default network is distilled into; None if no study distils.
    """

    name: str
    citation: str
    strategy: str
    network: str
    weights: str
    data: str
    studies: Mapping[str, Callable[[Setup], Study]]
    budget: str | None = None
    student: str | None = None


def reproduce(
    paper: Paper, names: Sequence[str], setup: Setup, folder: Path, *, network: str, command: str
) -> Reproduction:
    """Run studies of a paper and write their document to a folder, after each study.

    Studies in the folder's document with the same command and weights are not repeated.

    Parameters
    ----------
    paper : Paper
        The paper.
    names : sequence of str
        Its studies to run.
    setup : Setup
        What they work on.
    folder : Path
        Gets the document as ``.json``, ``.md`` and ``.html``.
    network : str
        The name of the network.
    command : str
        The command without the name of the study.

    Raises
    ------
    ConfigError
        If the folder has the studies of another network.
    CorruptArtifact
        If the folder's document is damaged.
    """
    document = _stored(paper, folder, network)
    weights = state_hash(setup.model)
    for name in track([name for name in paper.studies if name in names], "studies"):
        one = f"{command} --study {name}"
        if not any((s.command, s.weights) == (one, weights) for s in document.studies if s.name == name):
            study = replace(
                paper.studies[name](setup), command=one, weights=weights,
                versions={"rankfold": __version__, "torch": str(torch.__version__)},
            )  # fmt: skip
            finished = {s.name: s for s in (*document.studies, study)}
            studies = tuple(finished[name] for name in paper.studies if name in finished)
            document = replace(document, studies=studies)
        for suffix in (".json", ".md", ".html"):
            document.save(folder / f"{paper.name}{suffix}")
    return document


def _stored(paper: Paper, folder: Path, network: str) -> Reproduction:
    """Return the document in a folder, or one without studies if there is none."""
    file = folder / f"{paper.name}.json"
    if not file.exists():
        return Reproduction(paper=paper.name, citation=paper.citation, model_name=network)
    document = Reproduction.load(file)
    if document.model_name != network:
        raise ConfigError(
            f"{str(folder)!r} has the studies of {document.model_name!r}. Choose another folder for {network!r}."
        )
    return document


def _sum(amounts: Sequence[tuple[int, int]]) -> Amounts:
    return Amounts(params=sum(params for params, _ in amounts), macs=sum(macs for _, macs in amounts))
