"""Realize a plan: apply it, fine-tune, save, reload, prove, measure and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rankfold._config import Code, spelled
from rankfold._hashing import json_hash, module_hash, tensor_hash
from rankfold._turns import in_grad_turn
from rankfold._version import __version__
from rankfold.api.applying import apply_plan, measured_errors, source_of
from rankfold.api.calibrating import Calibration, calibration_of
from rankfold.api.identity import metric_identity
from rankfold.api.options import Fitting, Reconstruct, reconstruction
from rankfold.api.proving import check_kept, reloaded
from rankfold.api.ram import peak_ram
from rankfold.calibration import Sequential
from rankfold.candidates.outputs import data_hash, data_probe
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, DataError, ModelError, NoisyMachine, PlanMismatch
from rankfold.evaluation import Metric, as_metric
from rankfold.evaluation import evaluate as measure
from rankfold.inventory import Spare, check_model, evaluating, inspect
from rankfold.records import PEAK, Budget, Inventory, Plan
from rankfold.records.display import Shown, show
from rankfold.records.inventory import LARGE_REST
from rankfold.reporting import MetricValue, Report, RoundRow, build_report, with_latency, with_peak_ram, with_widths
from rankfold.reporting.codec import decode
from rankfold.storage import check_output, save_described
from rankfold.storage.state import check_state
from rankfold.surgery import check_plan, plan_of
from rankfold.surgery.apply import remember_plan, replaced_layers
from rankfold.timing import Timer
from rankfold.tune import FineTune, TuneResult, finetune_
from rankfold.workbench import CompressedModel, SearchIdentity

Measure = Callable[[nn.Module], Any]
T = TypeVar("T")
"""A metric as users give it: any callable of a model."""

LOW_COVERAGE = 0.5
"""Below this share of compressible parameters the report warns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an artifact goes, and which other files describe it.

    Parameters
    ----------
    folder : Path
        The artifact's folder.
    companions : callable or None
        From the artifact's checksum to further texts by file name, written in the same step.
    """

    folder: Path
    companions: Callable[[str], Mapping[str, str]] | None = None

    @classmethod
    def of(cls, output: str | Path | Destination) -> Destination:
        """Return the destination for what a user gives."""
        return output if isinstance(output, Destination) else cls(folder=Path(output))

    def inside(self, name: str) -> Destination:
        """Return a destination in a folder inside of this one."""
        return replace(self, folder=self.folder / name)

    def check(self) -> None:
        """Raise unless an artifact can be written there."""
        check_output(self.folder)


Output = str | Path | Destination


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result(Shown):
    """A compressed model with its report.

    Parameters
    ----------
    model : Module
        The compressed model, as saved, loaded again and measured.
    plan : Plan
        The plan that was applied.
    report : Report
        Costs and errors before and after, layer by layer.
    tuned : TuneResult or None
        The result of fine-tuning.
    """

    model: nn.Module = field(repr=False)
    plan: Plan
    report: Report = field(repr=False)
    tuned: TuneResult | None = field(default=None, repr=False)

    def save(self, output: Output) -> Result:
        """Write the artifact and its report in one step; return the result with the report as it was written."""
        to, report = Destination.of(output), self.report
        companions = to.companions or (lambda _: {})
        identity = save_described(
            self.model, to.folder, describe=lambda checksum: {**companions(checksum), **report.texts(checksum)}
        )
        return replace(self, report=replace(report, artifact=identity))

    def __repr__(self) -> str:
        return f"<Result: {self.plan!r}, {self.report!r}>"


@show.register
def _(result: Result, console: Any) -> None:
    result.report.print(console)


@dataclass(slots=True)
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.start
        self.start = now


@dataclass(slots=True, kw_only=True, eq=False)
class Draft(CompressedModel):
    """A compressed model that has not been saved yet.

    Parameters
    ----------
    model, tuned
        The compressed model, and how fine-tuning went.
    errors : mapping
        Relative error by layer name, 0..1.
    values : dict
        The metric by stage, as `MetricValue` names them.
    notes : list of str
        For the report.
    """

    errors: Mapping[str, float]
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The metric as it was measured last."""
        return next(self.values[stage] for stage in ("reloaded", "tuned", "compressed") if stage in self.values)


@dataclass(kw_only=True)
class Realizer:
    """Makes compressed models of one original, and reports what was measured on them after saving and loading.

    Parameters
    ----------
    model : Module
        The original; left untouched.
    example_input : object
        What the models are proved and counted on.
    inventory : Inventory
        The original's layers.
    data : Calibration or None
        Calibration data.
    how : Fitting
        How factors are found.
    metric : callable or None
        What is measured.
    name : str
        The model's name, for the report.
    clock : Clock
        Times the stages.
    spare : Spare or None
        A copy of the original, for the next model.
    timer : Timer or None
        Measures the latency of the final model.
    """

    model: nn.Module
    example_input: Any
    inventory: Inventory
    data: Calibration | None = None
    how: Fitting = field(default_factory=lambda: Fitting(mode="weights"))
    metric: Metric | None = None
    name: str = ""
    clock: Clock = field(default_factory=Clock)
    spare: Spare | None = None
    timer: Timer | None = None
    _peaks: dict[str | None, int] = field(default_factory=dict, init=False, repr=False)  # of the original, by data type

    def value(self, model: nn.Module) -> float:
        """Measure a model."""
        assert self.metric is not None
        value = measure(model, self.metric)
        self.clock.lap("evaluate")
        return value

    def identity(self, dense: float | None) -> dict[str, Any] | None:
        """Return everything visible that the metric of a plan depends on except the plan; None if too little is.

        `dense` is the metric of the original.
        """
        data = self._looked_at(data_hash)
        if data is None:
            return None
        moments = {} if self.data is None else self.data.moments(())
        named = {f"{name}.{k}": t for name, of_layer in moments.items() for k, t in of_layer.tensors().items()}
        return {**self._facts(), "dense": dense, "data": data, "moments": tensor_hash(named)}

    def search_identity(self) -> SearchIdentity | None:
        """Return everything visible that a search which measures its models depends on; None if too little is."""
        seen = self._looked_at(data_probe)
        if seen is None:
            return None
        data = {purpose: digest for purpose, (digest, _) in seen.items()}
        outputs = [number for _, numbers in seen.values() for number in numbers]
        return SearchIdentity(facts={**self._facts(), "data": data}, outputs=outputs)

    def _looked_at(self, look: Callable[..., T | None]) -> dict[str, T] | None:
        """Return what `look` tells of the data of the metric and of the calibration; None if it cannot tell of one."""
        data = {
            "evaluation": getattr(getattr(self.metric, "function", None), "loader", None),
            "calibration": None if self.data is None else self.data.batches,
        }
        seen: dict[str, T] = {}
        with evaluating(self.model):  # data may draw from torch's random state
            for purpose, batches in data.items():
                one = None if batches is None else look(self.model, batches, purpose=purpose)
                if one is not None:
                    seen[purpose] = one
                elif batches is not None:
                    return None
        return seen

    def _facts(self) -> dict[str, Any]:
        assert self.metric is not None
        return {
            "what": "metric of a plan",
            "model": module_hash(self.model),
            "metric": [self.metric.name, json_hash(metric_identity(self.metric.function))],
            "reconstruct": repr(self.how),
            "versions": [__version__, str(torch.__version__)],
        }

    def apply(self, plan: Plan, like: nn.Module | None = None, *, measured: bool = True) -> Draft:
        """Apply a plan and measure the model; `like` is as for `apply_plan`."""
        applied = apply_plan(
            self.model, plan, self.data, self.how, example_input=self.example_input, spare=self.spare, like=like
        )
        source = applied.source
        errors = applied.errors or measured_errors(applied.model, source.model, source.moments)
        renewed = [] if applied.renewed is None else [applied.renewed.note]
        draft = Draft(model=applied.model, errors=errors, notes=[*renewed, *applied.notes])
        self.clock.lap("apply")
        if measured and self.metric is not None:
            draft.values["compressed"] = self.value(draft.model)
        return draft

    def adopt(self, draft: Draft, plan: Plan) -> Draft:
        """Take the model that a strategy made for the plan that it returned, and measure it.

        Errors of layers are those of the trained model. Notes on how it was made are dropped, because a loop that was
        resumed has none.

        Raises
        ------
        PlanMismatch
            If the model was made by another plan.
        """
        made = plan_of(draft.model)
        if _decisions(made) != _decisions(plan):
            raise PlanMismatch(
                f"strategy {plan.provenance.strategy!r} kept the model of another plan. Correct the strategy: it must "
                "keep the model of the plan that it returns."
            )
        provenance = replace(plan.provenance, reconstruct=made.provenance.reconstruct)
        draft.model = remember_plan(draft.model, replace(plan, provenance=provenance))
        source = source_of(self.model, plan, self.data, self.how)
        draft.errors, draft.notes = measured_errors(draft.model, source.model, source.moments), []
        if self.metric is not None:
            draft.values["compressed" if draft.tuned is None else "tuned"] = self.value(draft.model)
        return draft

    def tune(self, draft: Draft, recipe: FineTune, *, teacher: nn.Module | None) -> TuneResult:
        """Train the model of a draft, and measure it again."""
        watched = self.metric if recipe.uses_metric else None
        draft.tuned = finetune_(draft.model, recipe, teacher=teacher, metric=watched)
        if recipe.validate is not None:
            draft.notes.append("the metric after each epoch of fine-tuning is that of held-out data")
        draft.model = draft.tuned.model
        self.clock.lap("finetune")
        if self.metric is not None:
            draft.values["tuned"] = self.value(draft.model)
        return draft.tuned

    def finish(
        self, draft: Draft, *, budget: Budget | None = None, measured: bool = True, notes: Sequence[str] = ()
    ) -> Result:
        """Save the model, load it again, prove and measure what was loaded, and report it.

        Parameters
        ----------
        draft : Draft
            The model; its `values` hold those of the original, under ``"dense"``, if it is measured.
        budget : Budget, optional
            By default that of the plan.
        measured : bool
            Whether to measure the loaded model.
        notes : sequence of str
            For the report.
        """
        plan = plan_of(draft.model)
        pricing = Pricing.of_plan(self.inventory, plan)
        inventory = pricing.inventory
        small, disk_bytes = reloaded(draft.model, self.model, self.example_input)
        rest = pricing.built(inspect(small, self.example_input), plan)
        if budget is None and plan.provenance.budget is not None:
            budget = Budget.parse(plan.provenance.budget)
        bounds = None if budget is None else budget.counted
        if bounds is not None and not bounds.exceeded(pricing.plan_cost(plan), inventory.total):
            check_kept(bounds, rest.total, inventory.total)  # an edited plan may exceed it: the report says so
        self.clock.lap("save and load")
        metrics = list[MetricValue]()
        if measured and self.metric is not None:
            draft.values["reloaded"] = self.value(small)
            metrics.append(metric_value(self.metric, draft.values))
        report = build_report(
            replace(inventory, uncounted=tuple(sorted({*inventory.uncounted, *rest.uncounted}))),
            plan,
            rest.total,
            pricing.layer_costs(plan),
            metrics=metrics,
            history=draft.tuned.history if draft.tuned is not None else (),
            notes=[*_coverage_notes(inventory), *draft.notes, *notes],
            disk_bytes=disk_bytes,
            measured_errors=draft.errors,
            model_name=self.name or type(self.model).__name__,
            timings=self.clock.seconds,
            budget=budget,
        )
        report = replace(report, rounds=tuple(decode(RoundRow, row, "round") for row in draft.rounds))
        report = with_widths(report, plan, inventory, replaced_layers(small))
        if budget is not None and budget.get(PEAK):
            report = self._with_peak_ram(report, small, plan.provenance.deploy_dtype)
        if self.timer is not None:
            report = self._with_latency(report, self.timer, small)
        return Result(model=small, plan=plan, report=report, tuned=draft.tuned)

    def _with_peak_ram(self, report: Report, small: nn.Module, dtype: str | None) -> Report:
        """Return a report with the verdicts on bounds on RAM; a failed export must not cost a trained model."""
        try:
            if dtype not in self._peaks:
                self._peaks[dtype] = peak_ram(self.model, self.example_input, dtype)
            peak = peak_ram(small, self.example_input, dtype)
        except ModelError as error:
            return replace(report, notes=(*report.notes, f"peak RAM was not computed: {error}"))
        return with_peak_ram(report, self._peaks[dtype], peak)

    def _with_latency(self, report: Report, timer: Timer, small: nn.Module) -> Report:
        """Return a report with the measured latency; a busy machine must not cost a trained model."""
        try:
            times = timer.compare(small)
        except NoisyMachine as error:
            return replace(report, notes=(*report.notes, f"latency was not measured: {error}"))
        return with_latency(report, times.dense_ns, times.ns, str(timer.target))


@in_grad_turn
def realize(
    model: nn.Module,
    example_input: Any,
    plan: Plan,
    *,
    calibration: Iterable[Any] | None = None,
    reconstruct: Reconstruct | Sequential | None = None,
    evaluate: Measure | None = None,
    finetune: FineTune | None = None,
    output: Output | None = None,
    name: str = "",
) -> Result:
    """Carry out a plan: apply it, fine-tune, save, load, measure and report. `compress` calls `plan`, then `realize`.

    Parameters
    ----------
    model : Module
        The model that the plan was made for; left untouched.
    example_input : object
        As for `plan`.
    plan : Plan
        The plan to apply; it may have been edited.
    calibration, reconstruct
        As for `apply`.
    evaluate : callable, optional
        A metric, ``metric(model) -> float``, such as ``rf.top1(loader)``; measured before and after each stage.
    finetune : FineTune, optional
        Train the compressed model, with the original as the teacher.
    output : str or Path, optional
        Folder for the artifact and its report.
    name : str
        The model's name, for the report.

    Returns
    -------
    Result

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model.
    RankfoldError
        As for `apply`; nothing is written then.
    """
    how = reconstruction(reconstruct, has_data=calibration is not None)
    check_work(model, evaluate=evaluate, finetune=finetune, output=output)
    check_plan(model, plan)
    realizer = Realizer(
        model=model, example_input=example_input, inventory=inspect(model, example_input),
        data=calibration_of(model, calibration, example_input), how=how,
        metric=None if evaluate is None else as_metric(evaluate), name=name,
    )  # fmt: skip
    dense = {} if evaluate is None else {"dense": realizer.value(model)}
    draft = realizer.apply(plan)
    draft.values |= dense
    if finetune is not None:
        realizer.tune(draft, finetune, teacher=model)
    result = realizer.finish(draft)
    return result if output is None else result.save(output)


def check_work(model: nn.Module, *, evaluate: Measure | None, finetune: FineTune | None, output: Output | None) -> None:
    """Raise for what would end the work late: a recipe that cannot work, an output or model that cannot be written."""
    if output is not None:
        Destination.of(output).check()
    check_model(model)
    check_state(model)
    if finetune is None:
        return
    if not isinstance(finetune, FineTune):
        raise ConfigError(f"finetune must be a rankfold.FineTune. Got {type(finetune).__name__} instead.")
    if finetune.data is None:
        raise DataError(f"fine-tuning needs data. Pass {spelled('data', Code('loader'), of='FineTune')}.")
    if finetune.metric_option is not None and evaluate is None and finetune.validate is None:
        raise ConfigError(
            f"{spelled(*finetune.metric_option, of='FineTune')} needs a metric, but there is none. Pass "
            f"{spelled('evaluate', Code('rf.top1(loader)'))}."
        )


def predict(inventory: Inventory, plan: Plan, name: str) -> Report:
    """Return the report of a plan that has not been applied: costs by the methods' formulas, predicted errors."""
    pricing = Pricing.of_plan(inventory, plan)
    after, costs = pricing.plan_cost(plan), pricing.layer_costs(plan)
    report = build_report(pricing.inventory, plan, after, costs, model_name=name, notes=["planned, not applied yet"])
    narrow = pricing.narrowed(plan.narrowing).inventory
    return with_widths(report, plan, pricing.inventory, {layer.name: layer for layer in narrow})


def _decisions(plan: Plan) -> dict[str, Any]:
    return {name: (c.method, c.ranks, dict(c.options), c.gauge) for name, c in plan.factored.items()}


def metric_value(metric: Metric, values: Mapping[str, float]) -> MetricValue:
    """Return the metric as the report shows it, with its values by stage."""
    return MetricValue(
        name=metric.name,
        dense=values["dense"],
        compressed=values.get("compressed"),
        tuned=values.get("tuned"),
        reloaded=values.get("reloaded"),
        higher_is_better=metric.higher_is_better,
        samples=metric.samples,
    )


def _coverage_notes(inventory: Inventory) -> list[str]:
    notes = list[str]()
    if inventory.coverage[0] < LOW_COVERAGE:
        notes.append(f"only {inventory.coverage[0]:.0%} of the parameters lie in layers that can be compressed")
        notes += [str(holder) for holder in inventory.holders[:3] if holder.share >= LARGE_REST]
    return notes + [f"{layer.name}: {layer.note}" for layer in inventory.compressible if layer.note]
