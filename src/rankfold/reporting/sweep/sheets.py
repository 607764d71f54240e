"""The table of a sweep as text, a row for each budget that has a plan."""

from __future__ import annotations

from collections.abc import Sequence

from rankfold.records import Cost
from rankfold.reporting import words
from rankfold.reporting.sweep.record import SweepPoint, SweepRecord

SHOWN = ("params", "macs", "flash")
"""Resources with a column, whatever is varied."""

FRONT = "front"
"""Marks a point that no other one beats."""


def headline(sweep: SweepRecord) -> str:
    """Return one line that says how the points came about."""
    number = len(sweep.feasible)
    parts = [
        f"{number} plan{'s' * (number != 1)} over {sweep.resource} from one table",
        f"strategy {sweep.strategy}",
        f"damage by {sweep.proxy}",
    ]
    if sweep.measured:
        parts.append(f"{words.count(sweep.measured)} candidates measured")
    if sweep.metric is not None:
        parts.append(f"dense {sweep.metric.name} {words.metric(sweep.metric, sweep.metric.dense)}")
    parts += [f"{stage} {words.seconds(taken)}" for stage, taken in sweep.timings.items()]
    return " · ".join(parts)


def heads(sweep: SweepRecord) -> list[str]:
    """Return the titles of the columns; one that starts with ``>`` is of numbers."""
    extra = [f">{sweep.resource}"] if sweep.resource not in SHOWN else []
    metric = [f">{sweep.metric.name}", ">change"] if _measured(sweep) and sweep.metric is not None else []
    return ["budget", ">params", ">MACs", *extra, ">weights", ">damage", *metric, ""]


def rows(sweep: SweepRecord) -> list[list[str]]:
    """Return a row for each budget that has a plan."""
    best = {id(point) for point in sweep.front()}
    return [_row(sweep, p, p.cost, FRONT if id(p) in best else "") for p in sweep.feasible if p.cost is not None]


def _row(sweep: SweepRecord, point: SweepPoint, cost: Cost, mark: str) -> list[str]:
    cells = [_spaced(point.budget), _amount(cost.params, sweep.dense.params), _macs(sweep, cost)]
    if sweep.resource not in SHOWN:
        cells.append(_amount(cost.get(sweep.resource), sweep.dense.get(sweep.resource)))
    cells += [words.size(cost.weight_bytes), damage(point.damage)]
    if _measured(sweep) and sweep.metric is not None:
        cells.append(words.metric(sweep.metric, point.metric))
        cells.append(change(sweep, point))
    return [*cells, mark]


def _macs(sweep: SweepRecord, cost: Cost) -> str:
    if sweep.uncounted:
        return words.at_least(words.compact(cost.macs))
    return _amount(cost.macs, sweep.dense.macs)


def change(sweep: SweepRecord, point: SweepPoint) -> str:
    """Return how far a point's metric is from the dense model's."""
    if sweep.metric is None or point.metric is None:
        return words.NONE
    difference = point.metric - sweep.metric.dense
    return f"{100 * difference:+.2f}" if sweep.metric.in_percent else f"{difference:+.4g}"


def infeasible(sweep: SweepRecord) -> Sequence[str]:
    """Return a line for each budget that has no plan: why."""
    return [f"{_spaced(p.budget)}: {p.reason.partition(chr(10))[0]}" for p in sweep.points if p.plan is None]


def damage(value: float | None) -> str:
    """Return a predicted damage with three significant digits."""
    return words.NONE if value is None else f"{value:.3g}"


def _measured(sweep: SweepRecord) -> bool:
    return any(point.metric is not None for point in sweep.points)


def _amount(value: int, dense: int) -> str:
    return f"{words.compact(value)} ({words.percent(value / dense)})" if dense else words.compact(value)


def _spaced(budget: str) -> str:
    return budget.replace("<=", " ≤ ").replace("%", " %")
