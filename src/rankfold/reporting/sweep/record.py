"""A sweep over budgets: a plan for each budget, its cost and its predicted loss."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from rankfold._documents import Limits
from rankfold._printable import printable
from rankfold.errors import BudgetError, CorruptArtifact, InfeasibleBudget
from rankfold.records import Budget, Cost, Plan, not_counted, resource_names
from rankfold.records.amounts import either
from rankfold.reporting.codec import decode
from rankfold.reporting.document import Document
from rankfold.reporting.record import MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One budget of a sweep.

    Parameters
    ----------
    budget : str
        All bounds of this point; `rankfold.plan` returns the same plan for it.
    plan : Plan or None
        None if no plan meets the budget.
    cost : Cost or None
        Of the whole model with the plan applied.
    predicted_loss : float or None
        For ``compressnas``: the measured error of the network's outputs if plans of several proxies were compared,
        otherwise the predicted loss of the search. For other strategies: the sum of the layers' squared relative
        errors, in which removed channels count.
    metric : float or None
        Measured with the plan applied; None if this point was not measured.
    reason : str
        Why there is no plan.
    folder : str or None
        Where the model was saved.
    """

    budget: str
    plan: Plan | None = None
    cost: Cost | None = None
    predicted_loss: float | None = None
    metric: float | None = None
    reason: str = ""
    folder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep(Document):
    """Plans for one model over a range of budgets; `rankfold.sweep` returns it.

    Parameters
    ----------
    resource : str
        The resource that varies, by its name in budgets.
    dense : Cost
        Of the dense model.
    points : tuple of SweepPoint
        In the order of the budgets.
    model_name : str
        The model's name; may be empty.
    coverage : str
        The inventory's coverage line.
    strategy : str
        The strategy that selected the ranks.
    proxy : str
        The estimate of the predicted loss.
    metric : MetricValue or None
        The metric, with its value for the dense model.
    measured : int
        Number of candidates that were measured for all points together.
    timings : mapping of str to float
        Wall-clock seconds by stage.
    created : str
        Date and time (UTC, ISO 8601).
    uncounted : tuple of str
        Operations with unknown MACs. If there are any, all MACs are lower bounds.
    """

    KIND: ClassVar[str] = "sweep"
    LIMITS: ClassVar[Limits] = Limits(size=64 * 2**20, entries=2_000_000)

    resource: str
    dense: Cost
    points: tuple[SweepPoint, ...]
    model_name: str = ""
    coverage: str = ""
    strategy: str = ""
    proxy: str = ""
    metric: MetricValue | None = None
    measured: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    created: str = ""
    uncounted: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Sweep: {len(self.feasible)} of {len(self.points)} budgets of {self.resource} planned>"

    @property
    def feasible(self) -> tuple[SweepPoint, ...]:
        """The points that have a plan."""
        return tuple(p for p in self.points if p.plan is not None)

    def front(self) -> tuple[SweepPoint, ...]:
        """Return the Pareto front of the swept resource and the predicted loss, the smallest point first.

        Of equal points, the first one is included.
        """
        best: list[SweepPoint] = []
        for point in sorted(self.feasible, key=lambda p: (self.amount(p), p.predicted_loss)):
            if not best or (point.predicted_loss or 0.0) < (best[-1].predicted_loss or 0.0):
                best.append(point)
        return tuple(best)

    def plan(self, budget: str | Mapping[str, float | str] | Sequence[str] | Budget) -> Plan:
        """Return the plan with the lowest predicted loss that meets a budget.

        Parameters
        ----------
        budget : str, mapping, sequence or Budget
            As for `rankfold.plan`, on additive resources such as params, macs, fm, memory or flash.

        Raises
        ------
        InfeasibleBudget
            If no point meets it; the message contains the lowest values of the points.
        BudgetError
            If it bounds a resource that a sweep does not count.
        """
        asked = Budget.parse(budget)
        counted = [*resource_names("additive"), *self.dense.more]
        other = next((b for b in asked.bounds if b.resource not in counted), None)
        if other is not None:
            what = "a sweep does not count" if other.part is None else "no budget of this sweep bounds"
            raise BudgetError(
                f"budget {str(asked)!r} bounds {other.resource}, which {what}. Bound "
                f"{either(list(dict.fromkeys(counted)))}, or call rankfold.plan."
            )
        if self.uncounted and asked.get("macs"):
            raise BudgetError(
                f"budget {str(asked)!r} bounds macs, but some operations of the model have no formula for them "
                f"({not_counted(self.uncounted)}). Bound other resources."
            )
        costs = [p.cost for p in self.points if p.cost is not None] or [self.dense]
        fitting = [p for p in self.feasible if p.cost is not None and not asked.exceeded(p.cost, self.dense)]
        plan = min(fitting, key=lambda p: p.predicted_loss or 0.0).plan if fitting else None
        if plan is None:
            raise InfeasibleBudget(
                f"no plan of the sweep meets budget {str(asked)!r}. Loosen it, or sweep over smaller budgets.",
                asked.rows(self.dense, lambda resource: min(cost.get(resource) for cost in costs)),
            )
        return plan

    def amount(self, point: SweepPoint) -> int:
        """Return the cost of a feasible point in the swept resource."""
        assert point.cost is not None
        return point.cost.get(self.resource)

    def share(self, point: SweepPoint) -> float:
        """Return `amount` as a share of the dense model."""
        return self.amount(point) / max(self.dense.get(self.resource), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values; each plan is in the format of `Plan.save`."""
        data = Document.to_dict(self)
        best = self.front()
        for point, entry in zip(self.points, data["points"], strict=True):
            entry["front"] = point in best
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """Return the sweep that `to_dict` describes; raise `CorruptArtifact` if a field is missing or malformed."""
        sweep = decode(cls, data, source)
        for i, p in enumerate(sweep.points):
            if p.plan is not None and (p.cost is None or p.predicted_loss is None):
                where = f"{source}.points[{i}]"
                raise CorruptArtifact(
                    f"{where} has a plan but no cost or predicted loss. It may be edited or truncated; restore or "
                    "recreate it."
                )
        return sweep

    def to_csv(self) -> str:
        """Return the points as comma-separated values, amounts in units and bytes."""
        stream, best = io.StringIO(), self.front()
        writer = csv.writer(stream, lineterminator="\n")
        names = ("params", "macs", "fm", "weight_bytes")
        writer.writerow(("budget", *names, "predicted_loss", "metric", "front", "folder", "reason"))
        for point in self.points:
            costs = [None if point.cost is None else getattr(point.cost, name) for name in names]
            front = int(point in best)
            writer.writerow(
                (point.budget, *costs, point.predicted_loss, point.metric, front, point.folder, point.reason)
            )
        return printable(stream.getvalue())

    def writers(self) -> dict[str, Callable[[], str]]:
        """Return the functions that render the sweep, by file suffix."""
        return {**Document.writers(self), ".csv": self.to_csv}
