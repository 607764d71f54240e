"""The contract of strategies, and functions that the baselines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, Self, get_args

from rankfold._config import Code, config_to_dict, spelled
from rankfold._registry import Registry
from rankfold.candidates import Forecast
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.records import (
    PEAK,
    Bound,
    Budget,
    Candidate,
    CandidateTable,
    Choice,
    Cost,
    Narrowing,
    Plan,
    Provenance,
    find_resource,
    is_inside,
)
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
            reason = strategy.needs_by(need)
            name = f"{strategy.name!r} with {reason}" if reason else repr(strategy.name)
            raise ConfigError(f"strategy {name} needs {need_text(need)}")


_Parts = frozenset[str]
"""The bounded resources of parts that a layer counts in."""


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
    narrows : bool
        Whether the strategy removes channels. It may then leave layers that it cannot narrow as they are.
    default_methods : tuple of str or None
        Default of the search's `methods`; None is `rankfold.candidates.DEFAULT_METHODS`.
    possible_methods : tuple of str or None
        The methods that the strategy can use; None for all. Others are refused.
    moment_samples : int or None
        Number of calibration samples for the second moments that the strategy's candidates are priced by; None for all.
    """

    __slots__ = ()

    name: str
    needs: frozenset[Need] = frozenset()
    handles: frozenset[str] = frozenset()
    narrows: bool = False
    default_methods: tuple[str, ...] | None = None
    possible_methods: tuple[str, ...] | None = None
    moment_samples: int | None = None

    def needs_by(self, need: Need) -> str:
        """Return the option that brings a need, as the user writes it; empty if the strategy always has it."""
        return ""

    def within(self, forecast: Callable[..., Forecast], limit: float | None) -> tuple[Self, str | None]:
        """Return the strategy with options that keep a search within `limit` seconds, and a sentence on its time.

        Parameters
        ----------
        forecast : callable
            Times the model and returns the forecast. Its arguments are `gradients`, whether the time of a backward pass
            is needed, and `limit`.
        limit : float or None
            None for no limit.
        """
        return self, None

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
    """Return advice about a budget that is out of reach, and the largest obstacles."""
    parts = ["Loosen the budget, allow more methods or exclude fewer layers."]
    if not any(layer.left_out for layer in problem.inventory):
        parts = ["Loosen the budget or allow more methods."]
    if problem.budget is not None:
        parts += filter(None, [problem.budget.share_hint()])
    return " ".join([*parts, *obstacles(problem)])


def obstacles(problem: Problem) -> list[str]:
    """Return what cannot be compressed, a sentence each, for the resources and parts that the budget bounds."""
    bounded: dict[str | None, set[str]] = {}
    for resource in map(find_resource, resources_of(problem)):
        bounded.setdefault(resource.part, set()).add(resource.whole)
    return [line for part, resources in bounded.items() for line in _obstacles(problem, part, resources)]


def _obstacles(problem: Problem, part: str | None, resources: Collection[str]) -> list[str]:
    """Return what cannot be compressed in a part of the model, or in all of it."""
    whole, paths = problem.inventory, {""} if part is None else problem.pricing.parts[part]
    inventory, where = (whole, "") if part is None else (whole.within(paths), f" in {part!r}")
    lines: list[str] = []
    if {"params", "flash", "memory"} & set(resources):
        inside = [holder for holder in whole.holders if is_inside((holder.name,), paths)]
        large = [str(holder) for holder in inside if holder.params >= SHOWN * inventory.total.params]
        lines += [f"Not compressible{where}: {'; '.join(large[:MOST_SHOWN])}."] if large else []
    if {"flash", "memory"} & set(resources):
        least = SHOWN * inventory.total.weight_bytes
        large = [f"{name!r} ({size:,} bytes)" for name, size in inventory.buffers if size >= least]
        lines += [f"Buffers are not compressed{where}: {', '.join(large[:MOST_SHOWN])}."] if large else []
    outside = inventory.total.macs - sum(cost.macs for cost in inventory.costs.values())
    if "macs" in resources and outside >= SHOWN * inventory.total.macs > 0:
        share = outside / inventory.total.macs
        lines.append(f"Operations outside of convolutions and linear layers make up {share:.0%} of the MACs{where}.")
    return lines


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
) -> tuple[dict[str, Candidate], float]:
    """Return the mildest selection that meets the budget, and its strongest level.

    All layers have the same level. If the budget bounds parts of the model, layers in the same parts do: the level of
    all layers is lowered until a bound is reached, then that of the layers outside of this bound, and so on.

    Parameters
    ----------
    select : callable
        Maps a level in 0..1 (0 is the mildest) to candidates of some layers; milder levels cost more.
    strategy : str
        The strategy's name, for messages.
    steps : int
        Number of bisections for a level.

    Raises
    ------
    InfeasibleBudget
        If level 1 exceeds the budget.
    """
    budget = problem.budget
    assert budget is not None
    check_reachable(problem, table)
    groups = {name: _parts_of(budget, table.dense[name]) for name in table.rows}
    levels = dict.fromkeys(groups.values(), 1.0)

    def at(level: float, moving: Collection[_Parts]) -> dict[str, Candidate]:
        used = {parts: level if parts in moving else fixed for parts, fixed in levels.items()}
        picks = {one: select(one) for one in set(used.values())}
        return {name: c for name, parts in groups.items() if (c := picks[used[parts]].get(name)) is not None}

    def exceeded(level: float, moving: Collection[_Parts]) -> list[Bound]:
        return budget.exceeded(table.cost(at(level, moving).values()), table.total)

    moving = set(levels)
    if exceeded(1.0, moving):
        raise InfeasibleBudget(
            f"strategy {strategy!r} cannot meet budget {str(budget)!r}, even with its strongest compression. "
            f"{advice(problem)}",
            budget.rows(table.total, table.cost(at(1.0, moving).values()).get),
        )
    while moving:
        level, reached = _lowest(partial(exceeded, moving=moving), steps)
        levels.update(dict.fromkeys(moving, level))
        names = {bound.resource for bound in reached}
        done = not reached or any(bound.part is None for bound in reached)
        moving = set() if done else {parts for parts in moving if not parts & names}
    return at(0.0, ()), max(levels.values(), default=0.0)


def _lowest(exceeded: Callable[[float], list[Bound]], steps: int) -> tuple[float, list[Bound]]:
    """Return the lowest level in 0..1 that exceeds no bound, and the bounds that are exceeded just below it."""
    reached = exceeded(0.0)
    if not reached:
        return 0.0, []
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        if bounds := exceeded(middle):
            low, reached = middle, bounds
        else:
            high = middle
    return high, reached


def _parts_of(budget: Budget, dense: Cost) -> _Parts:
    return frozenset(b.resource for b in budget.additive if b.part is not None and dense.get(b.resource))


def make_plan(
    problem: Problem,
    strategy: Strategy,
    chosen: Mapping[str, Candidate],
    *,
    reasons: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    narrowing: Narrowing | None = None,
) -> Plan:
    """Return a plan with the chosen candidates; every other layer is kept, with its reason.

    With a narrowing, the candidates are those of the narrow layers.

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
        narrowing=narrowing or Narrowing(),
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
