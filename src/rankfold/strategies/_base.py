"""The contract of strategies, and what the baselines share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rankfold._config import build_config, config_to_dict
from rankfold._registry import Registry
from rankfold.errors import InfeasibleBudget
from rankfold.records import Candidate, CandidateTable, Choice, Cost, Plan, Problem, Provenance


class Strategy(Protocol):
    """Chooses method and ranks of every layer. One file each in this package, registered by name.

    An instance holds its options (a frozen config dataclass). It only returns a plan; it never changes a model.
    """

    name: str
    config: Any

    def plan(self, problem: Problem) -> Plan:
        """Return a plan that meets the problem's budget, or raise `InfeasibleBudget`."""
        ...


registry: Registry[type] = Registry("strategy")
"""All strategies by name; the value is the class, constructed with its config."""


def get(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """Return a strategy by name, with options; unknown names and options raise."""
    entry = registry.get(name)
    return entry.value(build_config(entry.config, options, owner=f"strategy {name!r}"))


def check_reachable(problem: Problem, table: CandidateTable) -> None:
    """Raise `InfeasibleBudget` if some bound is below what the table reaches for it alone."""
    if problem.budget is None:
        return
    rows = [
        (b.resource, b.limit(table.total), table.least(b.resource), table.total.get(b.resource))
        for b in problem.budget.bounds
    ]
    missed = [row for row in rows if row[1] < row[2]]
    if missed:
        raise InfeasibleBudget(
            f"budget {str(problem.budget)!r} cannot be met with the methods {', '.join(problem.methods)} "
            "on the compressible layers. Loosen it, allow more methods or exclude fewer layers.",
            rows,
        )


def price(cost: Cost, problem: Problem, table: CandidateTable) -> float:
    """Return the sum of a cost's shares of the whole model, in the budget's resources (parameters without one)."""
    resources = [b.resource for b in problem.budget.bounds] if problem.budget else ["params"]
    return sum(cost.get(r) / max(table.total.get(r), 1) for r in resources)


def worthwhile(problem: Problem, table: CandidateTable) -> dict[str, list[Candidate]]:
    """Return each layer's candidates that cost less than the layer in the budget's resources, the cheapest first.

    A candidate has fewer parameters and no more MACs than its layer, but it writes more feature maps.
    """
    rows = {
        layer: sorted(
            (c for c in row if price(c.cost, problem, table) < price(table.dense[layer], problem, table)),
            key=lambda c: (price(c.cost, problem, table), c.error, c.ranks),
        )
        for layer, row in table.rows.items()
    }
    return {layer: row for layer, row in rows.items() if row}


def mildest(
    problem: Problem,
    table: CandidateTable,
    pick: Callable[[float], dict[str, Candidate]],
    *,
    strategy: str,
    steps: int = 40,
) -> float:
    """Return the mildest level that meets the budget.

    Parameters
    ----------
    pick : callable
        From a level in 0..1 (0 = mildest) to a candidate for some of the layers; milder levels cost more.

    Raises
    ------
    InfeasibleBudget
        If even level 1 exceeds the budget.
    """
    assert problem.budget is not None
    check_reachable(problem, table)

    def fits(level: float) -> bool:
        assert problem.budget is not None
        return not problem.budget.exceeded(table.cost(pick(level).values()), table.total)

    if fits(0.0):
        return 0.0
    if not fits(1.0):
        least = table.cost(pick(1.0).values())
        raise InfeasibleBudget(
            f"strategy {strategy!r} cannot meet budget {str(problem.budget)!r}: its strongest compression leaves more. "
            "Loosen it, allow more methods or exclude fewer layers.",
            [
                (b.resource, b.limit(table.total), least.get(b.resource), table.total.get(b.resource))
                for b in problem.budget.bounds
            ],
        )
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def make_plan(
    problem: Problem,
    strategy: Strategy,
    chosen: Mapping[str, Candidate],
    *,
    reasons: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
) -> Plan:
    """Return a plan from the chosen candidates; every other layer is kept with its reason."""
    layers: dict[str, Choice] = {}
    for layer in problem.inventory:
        candidate = problem.fixed.get(layer.name) or chosen.get(layer.name)
        if candidate is None:
            layers[layer.name] = Choice(reason=reasons.get(layer.name, layer.skip or "dense is the better choice here"))
        else:
            layers[layer.name] = Choice(
                method=candidate.method,
                ranks=candidate.ranks,
                options=candidate.options,
                error=candidate.error,
                gauge=candidate.gauge,
                reason=(notes or {}).get(layer.name),
            )
    return Plan(
        layers=layers,
        fingerprint={layer.name: layer.describe() for layer in problem.inventory},
        provenance=Provenance(
            strategy=strategy.name,
            config=config_to_dict(strategy.config),
            budget=str(problem.budget) if problem.budget else None,
            methods=problem.methods,
            seed=problem.seed,
        ),
    )
