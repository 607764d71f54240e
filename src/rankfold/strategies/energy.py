"""``energy``: the cheapest candidate that keeps a share of each layer's energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankfold._config import is_number, require
from rankfold.records import Candidate, Plan
from rankfold.strategies.contract import Strategy, make_plan, mildest, registry, with_required, worthwhile
from rankfold.strategies.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy(Strategy):
    """Every layer keeps the same share of its energy at the lowest cost.

    The energy is that of the weight, or of the layer's output with calibration data. With several resources in the
    budget, the cost of a candidate is the sum of its shares of the model's resources.

    Parameters
    ----------
    keep : float
        Share of the energy (one minus the squared relative error) that each layer keeps, 0..1. With a budget, the
        largest share that meets it is used and recorded in the plan. Each bounded part of the model has its own share;
        the smallest one is recorded.
    """

    name = "energy"

    keep: float = 0.9

    def __post_init__(self) -> None:
        require(is_number(self.keep) and 0 <= self.keep <= 1, "keep", self.keep, "a number in [0, 1]")

    def plan(self, problem: Problem) -> Plan:
        """Return a plan with one share of energy for all layers."""
        table = problem.table()
        rows = worthwhile(problem, table)

        def select(level: float) -> dict[str, Candidate]:
            chosen = {}
            for layer, row in rows.items():
                # The factor prevents that rounding excludes a candidate whose squared error equals the level.
                candidate = next((c for c in row if c.error**2 <= level * (1 + 1e-12)), None)
                if candidate is not None:
                    chosen[layer] = candidate
            return with_required(table, chosen)

        chosen, level = select(1 - self.keep), 1 - self.keep
        if problem.budget is not None:
            chosen, level = mildest(problem, table, select, strategy=self.name)
        reasons = dict.fromkeys(table.rows, "no cheaper candidate keeps the required share of energy")
        return make_plan(problem, replace(self, keep=1 - level), chosen, reasons={**reasons, **table.reasons})


registry.register(Energy, summary="the same share of energy for every layer")
