"""The end of every road: save, load again, measure the loaded model, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import rankfold as rf
from rankfold.api.proving import check_kept, reloaded
from rankfold.cli._source import Source
from rankfold.cost import Pricing
from rankfold.errors import CorruptArtifact
from rankfold.evaluation import metric_name
from rankfold.records import Budget, Inventory, Plan
from rankfold.reporting import EpochRow, MetricValue, Report, build_report
from rankfold.storage import save_described

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What is known of a compressed model when it is to be written.

    Parameters
    ----------
    dense, small : Module
        The original and the compressed model.
    plan : Plan
        What was applied.
    inventory : Inventory
        Of the original.
    example : object
        The example input.
    metric : callable or None
        What is measured.
    values : mapping
        Of the metric, by field of `MetricValue`, as far as they were measured.
    errors : mapping
        Measured error by layer.
    history : sequence of EpochRow
        Of fine-tuning.
    notes : sequence of str
        For the report.
    timings : mapping
        Seconds by stage.
    """

    dense: nn.Module
    small: nn.Module
    plan: Plan
    inventory: Inventory
    example: Any
    metric: Metric | None
    values: Mapping[str, float]
    errors: Mapping[str, float]
    history: Sequence[EpochRow] = ()
    notes: Sequence[str] = ()
    timings: Mapping[str, float]


def finish(done: Finished, source: Source, folder: Path) -> Report:
    """Write artefact, ``source.json`` and report; the last value in the report is the reloaded model's."""
    loaded, disk_bytes = reloaded(done.small, done.dense, done.example, plan=done.plan)
    budget = None if done.plan.provenance.budget is None else Budget.parse(done.plan.provenance.budget)
    pricing = Pricing.of_plan(done.inventory, done.plan)
    inventory, after = pricing.inventory, pricing.built(rf.inspect(loaded, done.example), done.plan).total
    if budget is not None and not budget.exceeded(pricing.plan_cost(done.plan), inventory.total):
        check_kept(budget, after, inventory.total)  # an edited plan may exceed its budget, and says so in the report
    metrics: list[MetricValue] = []
    if done.metric is not None:
        higher = bool(getattr(done.metric, "higher_is_better", True))
        values: dict[str, Any] = {**done.values, "reloaded": rf.evaluate(loaded, done.metric)}
        metrics.append(MetricValue(name=metric_name(done.metric), higher_is_better=higher, **values))
    report = build_report(
        inventory,
        done.plan,
        after,
        pricing.layer_costs(done.plan),
        metrics=metrics,
        history=done.history,
        notes=done.notes,
        disk_bytes=disk_bytes,
        measured_errors=done.errors,
        model_name=source.model,
        timings=done.timings,
    )
    return write(loaded, report, source, folder, plan=done.plan)


def write(model: nn.Module, report: Report, source: Source, folder: Path, *, plan: Plan | None = None) -> Report:
    """Write an artefact with ``source.json`` and its report in one step, and return the report as it was written."""
    identity = save_described(model, folder, plan=plan, describe=lambda one: {**source.texts(one), **report.texts(one)})
    return replace(report, artifact=identity)


def predict(inventory: Inventory, plan: Plan, name: str) -> Report:
    """Return the report of a plan that has not been applied: costs by the methods' formulas, predicted errors."""
    pricing = Pricing.of_plan(inventory, plan)
    after, costs = pricing.plan_cost(plan), pricing.layer_costs(plan)
    return build_report(pricing.inventory, plan, after, costs, model_name=name, notes=["planned, not applied yet"])


def earlier_report(folder: str | Path) -> Report | None:
    """Return the report beside an artefact; None if there is none that can be read."""
    try:
        return Report.load(folder)
    except CorruptArtifact:
        return None


def earlier_values(report: Report | None, metric: Metric, source: Source, now: Source) -> dict[str, float]:
    """Return dense and final value of a metric from an earlier report, if they are of the same data and network."""
    if report is None or replace(source, seed=now.seed) != now:
        return {}
    for known in report.metrics:
        if known.name == metric_name(metric):
            return {"dense": known.dense, "compressed": known.final}
    return {}
