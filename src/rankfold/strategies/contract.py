"""The contract of strategies, and functions that the baselines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Literal, get_args

from rankfold._config import Code, config_to_dict, spelled
from rankfold._registry import Registry
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.records import PEAK, Candidate, CandidateTable, Choice, Cost, Plan, Provenance
from rankfold.strategies.problem import Problem

SHOWN = 0.05
"""Share of the model from which a module is named if a budget is out of reach."""
MOST_SHOWN = 3


Need = Literal["calibration", "labels", "metric", "recipe"]


def need_text(need: Need) -> str:
    """Return a requirement of a strategy in words, and what the user passes to meet it."""
    texts: dict[Need, str] = {
        "calibration": f"calibration data. Pass {spelled('calibration', Code('loader'))}.",
        "labels": f"labels. Pass {spelled('calibration', ...)} with batches (inputs, target).",
        "metric": f"a metric. Use compress with {spelled('evaluate', Code('rf.top1(loader)'))}.",
        "recipe": f"a recipe for fine-tuning. Use compress with {spelled('finetune', Code('rf.FineTune(...)'))}.",
    }
    return texts[need]


def check_needs(strategy: Strategy, given: Collection[Need]) -> None:
    """Raise `ConfigError` if a requirement of a strategy is missing."""
    for need in get_args(Need):
        if need in strategy.needs and need not in given:
            raise ConfigError(f"strategy {strategy.name!r} needs {need_text(need)}")


class Strategy(ABC):
    """A rank-selection strategy, which selects method and ranks of every layer.

    A subclass is a frozen dataclass whose fields are the strategy's options, one file each in this package, registered
    under its `name`. It returns a plan and never modifies a model; a strategy that loops uses the problem's workbench.

    Attributes
    ----------
    name : str
        The name in plans and in the interface.
    needs : frozenset of str
        Requirements (`Need`), which are checked before any work is done.
    handles : frozenset of str
        Measured bounds, such as ``"accuracy_drop"``, that the strategy meets itself. For other strategies,
        `rankfold.compress` searches for the smallest model within such a bound.
    default_methods : tuple of str or None
        Default of the search's `methods`; None is `rankfold.candidates.DEFAULT_METHODS`.
    """

    __slots__ = ()

    name: str
    needs: frozenset[Need] = frozenset()
    handles: frozenset[str] = frozenset()
    default_methods: tuple[str, ...] | None = None

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """Return a plan that meets the problem's budget, or raise `InfeasibleBudget`."""


registry: Registry[Strategy] = Registry("strategy")
"""All strategies by name."""

get = registry.get
"""Return a strategy by name, with options, or a strategy object as it is; see `Registry.get`."""


def check_reachable(problem: Problem, table: CandidateTable) -> None:
    """Raise `InfeasibleBudget` if an additive bound is below the least possible amount in the table."""
    if problem.budget is None:
        return
    rows = problem.budget.rows(table.total, table.least)
    missed = [row for row in rows if row[1] < row[2]]
    if missed:
        raise InfeasibleBudget(
            f"budget {str(problem.budget)!r} cannot be met with the methods {', '.join(problem.methods)} "
            f"on the compressible layers. {advice(problem)}",
            rows,
        )


def advice(problem: Problem) -> str:
    """Return advice about a budget that is out of reach, and the largest modules that cannot be compressed."""
    inventory, resources = problem.inventory, set(resources_of(problem))
    parts = ["Loosen the budget, allow more methods or exclude fewer layers."]
    if not any(layer.left_out for layer in inventory):
        parts = ["Loosen the budget or allow more methods."]
    if resources & {"params", "flash", "memory"}:
        large = [str(holder) for holder in inventory.holders if holder.share >= SHOWN]
        parts += [f"Not compressible: {'; '.join(large[:MOST_SHOWN])}."] if large else []
    outside = inventory.total.macs - sum(cost.macs for cost in inventory.costs.values())
    if "macs" in resources and outside >= SHOWN * inventory.total.macs > 0:
        share = outside / inventory.total.macs
        parts.append(f"Operations outside of convolutions and linear layers make up {share:.0%} of the MACs.")
    return " ".join(parts)


def resources_of(problem: Problem) -> list[str]:
    """Return the additive resources in the budget, by default parameters."""
    bounds = problem.budget.additive if problem.budget is not None else ()
    return [b.resource for b in bounds] or ["params"]


def worthwhile(problem: Problem, table: CandidateTable) -> dict[str, list[Candidate]]:
    """Return each layer's candidates that cost less than the layer in the budget's resources, cheapest first.

    Candidates have fewer parameters and no more MACs than their layer, but larger feature maps.
    """
    resources = resources_of(problem)

    def share(cost: Cost) -> float:
        return table.share(cost, resources)

    rows = {
        layer: sorted(
            (c for c in row if share(c.cost) < share(table.dense[layer])),
            key=lambda c: (share(c.cost), c.error, c.ranks),
        )
        for layer, row in table.rows.items()
    }
    return {layer: row for layer, row in rows.items() if row}


def with_required(table: CandidateTable, chosen: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Return a selection, extended by the candidate of least error for every layer that must be factored."""
    missing = {name for name in table.required if name not in chosen}
    least = {name: min(row, key=lambda c: (c.error, c.ranks)) for name, row in table.rows.items() if name in missing}
    return {**chosen, **least}


def mildest(
    problem: Problem,
    table: CandidateTable,
    select: Callable[[float], dict[str, Candidate]],
    *,
    strategy: str,
    steps: int = 40,
) -> float:
    """Return the mildest level that meets the budget; raise `InfeasibleBudget` if level 1 exceeds it.

    `select` maps a level in 0..1 (0 is the mildest) to candidates of some layers; milder levels cost more.
    """
    assert problem.budget is not None
    check_reachable(problem, table)

    def fits(level: float) -> bool:
        assert problem.budget is not None
        return not problem.budget.exceeded(table.cost(select(level).values()), table.total)

    if fits(0.0):
        return 0.0
    if not fits(1.0):
        raise InfeasibleBudget(
            f"strategy {strategy!r} cannot meet budget {str(problem.budget)!r}, even with its strongest compression. "
            f"{advice(problem)}",
            problem.budget.rows(table.total, table.cost(select(1.0).values()).get),
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
    """Return a plan with the chosen candidates; every other layer is kept, with its reason.

    Raises
    ------
    InfeasibleBudget
        If a kept layer takes more RAM than the budget allows.
    BudgetError
        If the budget bounds RAM and the table has no RAM costs.
    """
    _check_required(problem, strategy, chosen)
    layers: dict[str, Choice] = {}
    for layer in problem.inventory:
        candidate = problem.fixed.get(layer.name) or chosen.get(layer.name)
        if candidate is None:
            layers[layer.name] = Choice(reason=reasons.get(layer.name, layer.skip or "dense is the better choice here"))
        else:
            layers[layer.name] = Choice.of(candidate, reason=(notes or {}).get(layer.name))
    return Plan(
        layers=layers,
        fingerprint={layer.name: layer.fingerprint for layer in problem.inventory},
        provenance=Provenance(
            strategy=strategy.name,
            config=config_to_dict(strategy),
            budget=str(problem.budget) if problem.budget else None,
            methods=problem.methods,
            seed=problem.seed,
        ),
    )


def _check_required(problem: Problem, strategy: Strategy, chosen: Mapping[str, Candidate]) -> None:
    if problem.budget is None or not problem.budget.get(PEAK):
        return
    table = problem.table()
    dense = table.peaks.dense
    missing = sorted(table.required - set(chosen))
    if not missing:
        return
    limit, least = problem.budget.limit(PEAK, dense) or 0, table.peak_ram(chosen.values())
    raise InfeasibleBudget(
        f"strategy {strategy.name!r} keeps layer {missing[0]!r}, which takes more RAM than budget "
        f"{str(problem.budget)!r} allows. Use another strategy, allow more methods or loosen the budget.",
        [(PEAK, limit, least, dense)],
    )
