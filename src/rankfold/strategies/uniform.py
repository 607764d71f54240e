"""``uniform``: the same reduction for every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankfold._config import is_number, require
from rankfold.records import Candidate, Plan
from rankfold.strategies.contract import Strategy, make_plan, mildest, registry, resources_of, with_required, worthwhile
from rankfold.strategies.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Strategy):
    """Every layer uses the candidate of least error that keeps at most the same share of its cost.

    A layer without such a candidate uses its cheapest candidate. With several resources, the share applies to all.

    Parameters
    ----------
    keep : float
        Share of its cost that each layer keeps, 0..1; 0 selects the cheapest candidates. With a budget, the largest
        share that meets it is used and recorded in the plan. Each bounded part of the model has its own share; the
        smallest one is recorded.
    """

    name = "uniform"

    keep: float = 0.5

    def __post_init__(self) -> None:
        require(is_number(self.keep) and 0 <= self.keep <= 1, "keep", self.keep, "a number in [0, 1]")

    def plan(self, problem: Problem) -> Plan:
        """Return a plan with one share for all layers."""
        chosen, keep = self.select(problem)
        return make_plan(problem, replace(self, keep=keep), chosen, reasons=problem.table().reasons)

    def select(self, problem: Problem) -> tuple[dict[str, Candidate], float]:
        """Return the candidates of the layers that are factored, by name, and the smallest share.

        Raises
        ------
        InfeasibleBudget
            If the smallest candidates exceed the budget.
        """
        table = problem.table()
        resources = resources_of(problem)

        def share(candidate: Candidate) -> float:
            dense = table.dense[candidate.layer]
            return max(candidate.cost.get(r) / dense.get(r) if dense.get(r) else 0.0 for r in resources)

        rows = {layer: [(share(c), c) for c in row] for layer, row in worthwhile(problem, table).items()}

        def select(level: float) -> dict[str, Candidate]:
            if level == 0:
                return with_required(table, {})
            chosen = {}
            for layer, row in rows.items():
                fitting = [(s, c) for s, c in row if s <= 1 - level]
                if fitting:
                    chosen[layer] = min(fitting, key=lambda pair: (pair[1].error, pair[0], pair[1].ranks))[1]
                else:
                    chosen[layer] = min(row, key=lambda pair: (pair[0], pair[1].error, pair[1].ranks))[1]
            return with_required(table, chosen)

        chosen, level = select(1 - self.keep), 1 - self.keep
        if problem.budget is not None:
            chosen, level = mildest(problem, table, select, strategy=self.name)
        return chosen, 1 - level


registry.register(Uniform, summary="the same reduction for every layer")
