"""``compress``: the whole road in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold._grad_mode import trainable
from rankfold._turns import in_turn
from rankfold.api.applying import Applied, Reconstruct, SequentialOptions, apply_mode, check_reconstruct
from rankfold.api.checks import BudgetLike, check_compressible, check_counted, check_options, reusable
from rankfold.api.family import folder_name
from rankfold.api.planning import Planner
from rankfold.api.proving import check_kept, reloaded
from rankfold.api.searching import check_searchable, smallest_within
from rankfold.calibration import Renewal, collect_moments
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, DataError
from rankfold.evaluation import evaluate as measure
from rankfold.evaluation import metric_name
from rankfold.factor.linalg import double
from rankfold.factor.moments import Moments, output_energy
from rankfold.inventory import check_model, copy_model, inspect, layer_weight, static_inventory
from rankfold.methods import to_canonical
from rankfold.records import ACCURACY, Budget, Inventory, Plan
from rankfold.records.display import Shown, show
from rankfold.records.inventory import LARGE_REST
from rankfold.reporting import EpochRow, MetricValue, Report, build_report
from rankfold.storage import check_output, save_described
from rankfold.storage.state import check_state
from rankfold.surgery import Proof, factored_layers, plan_of
from rankfold.tune import FineTune, TuneResult, finetune_
from rankfold.workbench import own_checkpoint

LOW_COVERAGE = 0.5
"""Below this share of compressible parameters the report warns."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result(Shown):
    """What `compress` returns.

    Parameters
    ----------
    model : Module
        The compressed model: saved, loaded again and measured in that form.
    plan : Plan
        What was done.
    report : Report
        Before and after, layer by layer.
    tuned : TuneResult or None
        How fine-tuning went.
    """

    model: nn.Module = field(repr=False)
    plan: Plan
    report: Report = field(repr=False)
    tuned: TuneResult | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"<Result: {self.plan!r}, {self.report!r}>"


@show.register
def _(result: Result, console: Any) -> None:
    result.report.print(console)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One plan applied, fine-tuned if that was asked for, and measured."""

    applied: Applied
    model: nn.Module
    errors: Mapping[str, float]
    values: Mapping[str, float]
    tuned: TuneResult | None


@dataclass(slots=True)
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.start
        self.start = now


@in_turn
@trainable
def compress(
    model: nn.Module,
    example_input: Any,
    *,
    budget: BudgetLike | None = None,
    strategy: str = "compressnas",
    config: Mapping[str, Any] | None = None,
    methods: str | Sequence[str] | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Iterable[Any] | None = None,
    data_aware: bool = True,
    reconstruct: Reconstruct | None = None,
    sequential: SequentialOptions | None = None,
    include: str | type | Sequence[str | type] | None = None,
    exclude: str | type | Sequence[str | type] | None = None,
    keep_first_last: bool = False,
    overrides: Mapping[str, Any] | None = None,
    rank_multiple: int | None = None,
    gauge: bool = False,
    storage: str | None = None,
    cache: str | Path | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    finetune: FineTune | None = None,
    output: str | Path | None = None,
    name: str = "",
    seed: int = 0,
) -> Result:
    """Compress a trained model: inspect, plan, apply, fine-tune, save, load, measure, report.

    Parameters
    ----------
    model, example_input, budget, strategy, config, methods, method_options, calibration, data_aware
        As for `plan`. The model is left untouched; calibration data also serves to re-estimate BatchNorm statistics
        where that helps. The budget may also bound what is lost of the metric: ``"accuracy_drop<=1%"`` gives the
        smallest model whose metric is at most 0.01 worse than the original's (in parameters, or in the first other
        resource that the budget bounds). It is found by bisection over up to seven models, each applied, fine-tuned
        if there is a recipe for that, and measured.
    reconstruct, sequential
        As for `apply`. By default the factors are found as the plan was made: on the data unless there is none or
        ``data_aware=False``.
    include, exclude, keep_first_last, overrides, rank_multiple, gauge, storage, cache, seed
        As for `plan`.
    evaluate : callable, optional
        A metric, ``metric(model) -> float``, such as ``rf.top1(loader)``; measured before and after each stage.
    finetune : FineTune, optional
        Train the compressed model, with the original as the teacher.
    output : str or Path, optional
        Folder for the artefact and ``report.html``.
    name : str
        The model's name, for the report.

    Returns
    -------
    Result

    Raises
    ------
    RankfoldError
        As for `plan`; nothing is written then.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> result = rf.compress(net, torch.randn(1, 32), budget="params<=50%")
    >>> result.report.after.params <= result.report.before.params // 2
    True
    """
    clock = _Clock()
    bounds = None if budget is None else Budget.parse(budget)
    searched = check_searchable(bounds, evaluate is not None)
    check_options(
        budget=bounds.without(ACCURACY) if bounds is not None else None, strategy=strategy, config=config,
        methods=methods, method_options=method_options, overrides=overrides, rank_multiple=rank_multiple, gauge=gauge,
        storage=storage, seed=seed,
    )  # fmt: skip
    mode, options = check_reconstruct(reconstruct, calibration is not None, sequential)
    if reconstruct is None and not data_aware:
        mode = "weights"
    _check_finetune(finetune, evaluate)
    if output is not None:
        check_output(output)
    check_model(model)
    check_state(model)
    inspected = inspect(model, example_input, include=include, exclude=exclude, keep_first_last=keep_first_last)
    resources = () if bounds is None else bounds.resources
    pricing = Pricing.of(inspected, deploy_dtype=storage, gauge=gauge, resources=resources)
    inventory = pricing.inventory
    check_compressible(inventory)
    check_counted(inventory, bounds)
    # A model whose copy runs the original is refused early.
    Proof(model, (), example_input).check(copy_model(model, instead="rankfold.apply_ with a plan"))
    batches = reusable(calibration, example_input)
    clock.lap("inspect")
    values: dict[str, float] = {}
    if evaluate is not None:
        values["dense"] = measure(model, evaluate)
        clock.lap("evaluate")
    moments = None
    if batches is not None and data_aware:
        moments = collect_moments(model, batches, inventory.compressible)
        clock.lap("calibrate")
    planner = Planner(
        model, inspected, moments, batches, example_input=example_input, strategy=strategy, config=config,
        methods=methods, method_options=method_options, overrides=overrides, rank_multiple=rank_multiple, gauge=gauge,
        storage=storage, cache=cache, seed=seed, resources=resources,
    )  # fmt: skip

    def make(plan: Plan) -> _Made:
        nonlocal moments
        clock.lap("plan")
        if mode == "data" and moments is None and batches is not None:  # the plan was made without
            wanted = inventory.compressible if searched else [inventory.layer(name) for name in plan.factored]
            moments = collect_moments(model, batches, wanted)
        applied = apply_mode(
            model, plan, batches, mode, moments=moments, sequential=options, example_input=example_input
        )
        small, found = applied.model, dict[str, float]()
        errors = applied.errors or measured_errors(small, model, moments if mode == "data" else None)
        clock.lap("apply")
        if evaluate is not None:
            found["compressed"] = measure(small, evaluate)
            clock.lap("evaluate")
        tuned = None
        if finetune is not None:
            recipe = own_checkpoint(finetune, folder_name(plan.provenance.budget or "")) if searched else finetune
            tuned = finetune_(small, recipe, teacher=model, metric=None if finetune.target is None else evaluate)
            small = tuned.model
            clock.lap("finetune")
            if evaluate is not None:
                found["tuned"] = measure(small, evaluate)
                clock.lap("evaluate")
        return _Made(applied=applied, model=small, errors=errors, values=found, tuned=tuned)

    searching: list[str] = []
    if searched and bounds is not None and evaluate is not None:
        found = smallest_within(
            planner, bounds, lambda plan: _with_value(make(plan)), dense=values["dense"],
            higher_is_better=bool(getattr(evaluate, "higher_is_better", True)), metric=metric_name(evaluate),
        )  # fmt: skip
        made, searching = found.made, found.notes(bounds, metric_name(evaluate), values["dense"])
    else:
        made = make(planner.plan(bounds))
    applied, small, tuned = made.applied, made.model, made.tuned
    values |= made.values
    moments = None
    small, disk_bytes = reloaded(small, model, example_input)
    plan = plan_of(small)
    rest = pricing.built(inspect(small, example_input), plan)
    check_kept(bounds, rest.total, inventory.total)
    clock.lap("save and load")
    if evaluate is not None:
        values["reloaded"] = measure(small, evaluate)
        clock.lap("evaluate")
    report = build_report(
        replace(inventory, uncounted=tuple(sorted({*inventory.uncounted, *rest.uncounted}))),
        plan,
        rest.total,
        pricing.layer_costs(plan),
        metrics=[_metric(evaluate, values)] if evaluate is not None else [],
        history=history_rows(tuned),
        notes=[
            *_notes(inventory, applied.renewed),
            *(f"{name}: {note}" for name, note in planner.unknown().items()),
            *applied.notes,
            *searching,
        ],
        disk_bytes=disk_bytes,
        measured_errors=made.errors,
        model_name=name or type(model).__name__,
        timings=clock.seconds,
        budget=bounds,
    )
    if output is not None:
        report = replace(report, artifact=save_described(small, output, describe=report.texts))
    return Result(model=small, plan=plan, report=report, tuned=tuned)


def _with_value(made: _Made) -> tuple[_Made, float]:
    return made, made.values["tuned"] if made.tuned is not None else made.values["compressed"]


def _check_finetune(finetune: FineTune | None, evaluate: Callable[[nn.Module], float] | None) -> None:
    """Raise for a recipe that cannot work, before any work is done."""
    if finetune is None:
        return
    if not isinstance(finetune, FineTune):
        raise ConfigError(f"finetune must be a rankfold.FineTune. Got {type(finetune).__name__} instead.")
    if finetune.data is None:
        raise DataError("fine-tuning needs data. Give FineTune(data=...) an iterable of batches.")
    if finetune.target is not None and evaluate is None:
        raise ConfigError(f"finetune has the target {finetune.target}, but there is no metric. Pass evaluate=....")


def measured_errors(
    small: nn.Module, model: nn.Module, moments: Mapping[str, Moments] | None = None
) -> dict[str, float]:
    """Return the relative error of every factored layer, recomputed from the built module, 0..1.

    In the norm in which the factors were found: of the layer's output where there are moments, of its weight
    elsewhere.
    """
    names = {layer.name for layer in static_inventory(model)}  # an alias or a tied layer is no decision of its own
    out = {}
    for name, module in factored_layers(small).items():
        if name not in names:
            continue
        dense = double(layer_weight(model, name))
        with torch.no_grad():
            difference = double(module.dense_weight().detach()) - dense
        squares = [
            float(output_energy(to_canonical(w, module.info), (moments or {}).get(name))) for w in (difference, dense)
        ]
        out[name] = math.sqrt(max(squares[0], 0.0) / squares[1]) if squares[1] > 0 else 0.0
    return out


def history_rows(tuned: TuneResult | None) -> list[EpochRow]:
    """Return the fine-tuning history as the report shows it."""
    if tuned is None:
        return []
    return [EpochRow(epoch=e.epoch, loss=e.loss, lr=e.lr, metric=e.metric, seconds=e.seconds) for e in tuned.history]


def _metric(evaluate: Callable[[nn.Module], float], values: Mapping[str, float]) -> MetricValue:
    higher = bool(getattr(evaluate, "higher_is_better", True))
    return MetricValue(
        name=metric_name(evaluate),
        dense=values["dense"],
        compressed=values.get("compressed"),
        tuned=values.get("tuned"),
        reloaded=values.get("reloaded"),
        higher_is_better=higher,
    )


def _notes(inventory: Inventory, renewed: Renewal | None) -> list[str]:
    notes = []
    if inventory.coverage[0] < LOW_COVERAGE:
        notes.append(f"only {inventory.coverage[0]:.0%} of the parameters lie in layers that can be compressed")
        notes += [str(holder) for holder in inventory.holders[:3] if holder.share >= LARGE_REST]
    if renewed is not None:
        notes.append(renewed.note)
    notes += [f"{layer.name}: {layer.note}" for layer in inventory.compressible if layer.note]
    return notes
