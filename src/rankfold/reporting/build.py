"""Reports from the results of the other stages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rankfold.errors import BudgetError, ConfigError, PlanMismatch, UnknownNameError
from rankfold.records import (
    LATENCY,
    PEAK,
    Bound,
    Budget,
    Choice,
    Cost,
    Inventory,
    LayerInfo,
    Plan,
    Provenance,
    find_resource,
)
from rankfold.reporting.codec import decode, encode
from rankfold.reporting.layers import layer_note
from rankfold.reporting.record import BoundRow, EpochRow, LayerRow, MetricValue, WidthRow
from rankfold.reporting.report import Report


def build_report(
    inventory: Inventory,
    plan: Plan,
    after: Cost,
    layer_costs: Mapping[str, Cost],
    metrics: Sequence[MetricValue] = (),
    history: Iterable[Any] = (),
    notes: Sequence[str] = (),
    disk_bytes: int | None = None,
    measured_errors: Mapping[str, float] | None = None,
    model_name: str = "",
    timings: Mapping[str, float] | None = None,
    *,
    budget: Budget | None = None,
) -> Report:
    """Return the report of one compression.

    Parameters
    ----------
    inventory : Inventory
        The inventory of the dense model.
    plan : Plan
        The plan that was applied.
    after : Cost
        The cost of the compressed model.
    layer_costs : mapping of str to Cost
        The cost of each factored layer, by layer name.
    metrics, notes, disk_bytes, model_name, timings
        As in `Report`.
    history : iterable of EpochRow
        Fine-tuning, epoch by epoch; any records with the same fields are accepted.
    measured_errors : mapping of str to float
        Measured relative error of each factored layer, 0..1.
    budget : Budget or None
        The budget to check; None reads it from the plan's provenance. Bounds that are not on a cost are shown without a
        verdict, except a bound on the accuracy.

    Raises
    ------
    PlanMismatch
        If the plan names a layer that the inventory does not have.
    ConfigError
        If a factored layer has no cost.
    """
    names = {layer.name for layer in inventory}
    foreign = [name for name in plan.layers if name not in names]
    if foreign:
        raise PlanMismatch(
            f"the plan's layer {foreign[0]!r} is not in the inventory ({len(foreign)} in total). "
            "Use the inventory of the model that the plan was created for."
        )
    report = Report(
        model_name=model_name,
        coverage=inventory.summary(),
        example=inventory.example,
        before=inventory.total,
        after=after,
        uncounted=inventory.uncounted,
        layers=tuple(_row(layer, inventory, plan, layer_costs, measured_errors or {}) for layer in inventory),
        others=inventory.others,
        disk_bytes=disk_bytes,
        metrics=tuple(metrics),
        provenance=_plain(plan.provenance),
        notes=tuple(notes),
        history=tuple(
            EpochRow(epoch=e.epoch, loss=e.loss, lr=e.lr, metric=e.metric, seconds=e.seconds) for e in history
        ),
        timings=dict(timings or {}),
        created=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    )
    return replace(report, bounds=tuple(_bounds(plan.provenance, budget, report)))


def with_widths(report: Report, plan: Plan, before: Inventory, after: Mapping[str, LayerInfo]) -> Report:
    """Return a report that shows which channels went.

    Parameters
    ----------
    report : Report
        The report of a plan.
    plan : Plan
        The plan, whose narrowing names the groups.
    before : Inventory
        The inventory of the dense model.
    after : mapping of str to LayerInfo
        The layers of the compressed model, factored ones as what they replace.
    """
    if not plan.narrowing:
        return report
    shapes = {layer.name: layer.describe() for layer in before}
    changed = {name: layer.describe() for name, layer in after.items() if shapes.get(name) != layer.describe()}
    rows: dict[str, WidthRow] = {}
    for group in plan.narrowing:
        first, *others = (axis.name for axis in group.on("outputs") if axis.name in after)
        known = rows.get(first)
        coupled = tuple(dict.fromkeys((*(known.coupled if known else ()), *others)))
        widths = before.layer(first).out_channels, after[first].out_channels
        rows[first] = WidthRow(layer=first, before=widths[0], after=widths[1], coupled=coupled)
    layers = tuple(replace(row, narrowed=changed.get(row.name)) for row in report.layers)
    return replace(report, layers=layers, widths=tuple(rows.values()))


def with_latency(report: Report, dense_ns: int, ns: int, target: str) -> Report:
    """Return a report with the measured latency of both models, and the verdicts on bounds on it."""
    report = _judged(report, LATENCY, Cost(more={LATENCY: dense_ns}), ns)
    note = f"latency: median of alternating runs on {target}"
    return replace(report, latency=(dense_ns / 1e6, ns / 1e6), notes=(*report.notes, note))


def with_peak_ram(report: Report, dense: int, peak: int) -> Report:
    """Return a report with the verdicts on bounds on ``ram``, given the peaks of both models in bytes."""
    return _judged(report, PEAK, dense, peak)


def _judged(report: Report, resource: str, dense: Cost | int, value: int) -> Report:
    """Return a report with the verdicts on the bounds on one resource; `dense` is that of `Bound.limit`."""
    amount = dense.get(resource) if isinstance(dense, Cost) else dense
    bounds = [
        replace(row, limit=Budget.parse(row.text).limit(resource, dense), value=value, dense=amount)
        if row.resource == resource
        else row
        for row in report.bounds
    ]
    return replace(report, bounds=tuple(bounds))


def _row(
    layer: LayerInfo, inventory: Inventory, plan: Plan, layer_costs: Mapping[str, Cost], measured: Mapping[str, float]
) -> LayerRow:
    choice = plan.layers.get(layer.name, Choice())
    factored = choice.method is not None
    if factored and layer.name not in layer_costs:
        raise ConfigError(f"layer_costs must contain every factored layer. Layer {layer.name!r} is missing.")
    before = inventory.costs.get(layer.name, Cost())
    return LayerRow(
        name=layer.name,
        layer=layer.describe(),
        before=before,
        after=layer_costs.get(layer.name, before),
        method=choice.method,
        ranks=choice.ranks,
        error=choice.error if factored else None,
        measured_error=measured.get(layer.name) if factored else None,
        reason=choice.reason if factored else choice.reason or layer.skip or "not in the plan",
        note="; ".join(filter(None, ("gauged" if choice.gauge else None, layer_note(layer)))) or None,
    )


def _bounds(provenance: Provenance, budget: Budget | None, report: Report) -> Iterator[BoundRow]:
    """Check every bound against the report's numbers."""
    if budget is not None:
        yield from (_bound(bound, report) for bound in budget.bounds)
        return
    for text in filter(None, map(str.strip, re.split(r"[,;]", provenance.budget or ""))):
        try:
            yield from (_bound(bound, report) for bound in Budget.parse(text).bounds)
        except (BudgetError, UnknownNameError):  # shown with the verdict "unknown"
            yield BoundRow(resource=re.split(r"[<=/ ]", text)[0], text=text)


def _bound(bound: Bound, report: Report) -> BoundRow:
    row = BoundRow(resource=bound.resource, text=str(bound))
    if bound.kind == "accuracy" and report.metrics:
        drop = report.metrics[0].drop
        return replace(row, limit=bound.value, value=None if drop is None else round(drop, 9))
    if bound.kind != "additive":  # neither on a cost nor on a metric
        return row
    unknown = find_resource(bound.resource).whole == "macs" and report.uncounted
    value = None if unknown else report.after.get(bound.resource)
    return replace(row, limit=bound.limit(report.before), value=value, dense=report.before.get(bound.resource))


def _plain(provenance: Provenance) -> Provenance:
    """Return the provenance as JSON restores it, so that a reloaded report equals the original."""
    return decode(Provenance, encode(provenance), "provenance")
