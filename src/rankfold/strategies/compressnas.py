"""``compressnas``: joint, exact selection of method and ranks of all layers within any set of budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from rankfold import criteria
from rankfold._config import is_integer, is_number, require, spelled
from rankfold.candidates import Estimator, Forecast, NarrowPlan
from rankfold.candidates.forecast import SPARED
from rankfold.candidates.proxies import DATA_FREE, PROXIES, ProxyConfig
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.records import PEAK, Candidate, CandidateTable, Plan, Ranks
from rankfold.strategies._knapsack import Options, Solution, solve
from rankfold.strategies.channels import Channels
from rankfold.strategies.contract import Strategy, check_reachable, make_plan, registry
from rankfold.strategies.joint import Joint, JointSearch
from rankfold.strategies.problem import Problem
from rankfold.strategies.prune import Prune
from rankfold.strategies.uniform import Uniform

Losses = Mapping[str, Mapping[tuple[str, Ranks], float]]
Selection = dict[str, Candidate | None]
Chosen = tuple[Selection, dict[str, Any]]
"""A selection, and what the plan states of the search."""

CLEARLY = 0.95
"""A plan that only factors or only prunes replaces a joint one if its measured loss is below this share of it."""
WORTH_TELLING = 10.0
"""Seconds from which a search states its time before it starts."""
RIVALS = ("fisher", "weight", "uniform")
"""Proxies whose plans compete with that of "auto". Those without data cannot be misled by few or unusual samples."""
NEIGHBORS = 4
"""Number of candidates on either side of the selected one that a round measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressNAS(ProxyConfig, Strategy):
    """Rank selection as one global search (Sah et al. 2026, "CompressNAS").

    Every candidate has a cost in each budgeted resource and a loss, which a proxy predicts (in the paper, the squared
    error of the network's output if only this layer is replaced). Selecting at most one candidate per layer so that the
    sum of the losses is minimal within the budget is a multiple-choice knapsack problem, which is solved exactly as an
    integer program. One table of losses serves every budget. The options of the proxy
    (`rankfold.candidates.ProxyConfig`) are also options of the strategy.

    Parameters
    ----------
    rounds : int
        Number of refinements. The proxy adds up the losses of single layers; each round measures the neighbors of the
        solution with all other layers compressed, and solves again. Stops early if the network's outputs get no closer
        to the original's. Needs calibration data.
    tolerance : float
        Without a budget, the plan has the fewest parameters with at most this predicted loss.
    rivals : tuple of str or None
        Proxies whose plans compete with that of `proxy` under a budget: all of these plans are measured as whole
        networks, on calibration samples that the proxy has not used if there are any, with factors computed without
        these samples, and the best one is returned. By default "fisher", "weight" and "uniform" if `proxy` is "auto"
        and there is calibration data, otherwise none. Not with `widths`.
    widths : tuple of float
        Shares of the channels that each channel group may keep instead of all, such as ``(0.75, 0.5)``. Pruning,
        factoring and keeping layers then compete for one budget (`rankfold.strategies.joint`). Needs a budget. If
        `proxy` is "auto" and there is calibration data, the plan is measured as a whole network against plans that only
        factor and that only prune, and one of these is returned if it is clearly better.
    criterion : str
        Name of the criterion that selects the channels (`rankfold.criteria`).
    """

    name = "compressnas"

    rounds: int = 0
    tolerance: float = 0.01
    rivals: tuple[str, ...] | None = None
    widths: tuple[float, ...] = ()
    criterion: str = "l2"

    def __post_init__(self) -> None:
        ProxyConfig.__post_init__(self)
        require(is_integer(self.rounds) and self.rounds >= 0, "rounds", self.rounds, "an integer >= 0")
        require(is_number(self.tolerance) and self.tolerance > 0, "tolerance", self.tolerance, "a number above 0")
        good = isinstance(self.widths, tuple | list) and all(is_number(w) and 0 < w < 1 for w in self.widths)
        require(good, "widths", self.widths, "shares of the channels between 0 and 1")
        object.__setattr__(self, "widths", tuple(self.widths))  # plans record a list
        criteria.get(self.criterion)
        if self.rivals is not None:
            known = [proxy for proxy in PROXIES if proxy != "auto"]
            good = isinstance(self.rivals, tuple | list) and all(rival in known for rival in self.rivals)
            require(good, "rivals", self.rivals, f"a list of {', '.join(known)}")
            object.__setattr__(self, "rivals", tuple(self.rivals))
        excluded = {"rounds": self.rounds, "rivals": self.rivals, "proxy": self.proxy == "uniform"}
        for name, given in excluded.items():
            if self.widths and given:
                option = spelled(name, self.proxy) if name == "proxy" else spelled(name)
                raise ConfigError(f"{option} cannot be combined with {spelled('widths')}. Use one of them.")

    @property
    def proxy_options(self) -> ProxyConfig:
        """The options of the proxy."""
        return ProxyConfig(**{f.name: getattr(self, f.name) for f in fields(ProxyConfig)})

    def within(self, forecast: Callable[..., Forecast], limit: float | None) -> tuple[Self, str | None]:
        """Return the strategy with the best samples, points and, if it is "auto", proxy within the limit.

        "auto" remains where it stands for "fisher+network".
        """
        rivals = self._rivals(calibrated=True)
        gradients = any(proxy == "auto" or proxy.startswith("fisher") for proxy in (self.proxy, *rivals))
        chosen, best = forecast(gradients=gradients, limit=limit).choose(
            self.proxy_options, limit, rivals=rivals, fallback=self._fallback
        )
        settled = replace(self, moment_samples=chosen.moment_samples)
        if self.proxy not in DATA_FREE:
            proxy = self.proxy if chosen.proxy == best.proxy else chosen.proxy
            settled = replace(settled, proxy=proxy, samples=chosen.samples, points=chosen.points)
            if proxy != self.proxy:  # no longer "auto", which has rivals by default
                settled = replace(settled, rivals=chosen.rivals)
        if chosen.seconds < WORTH_TELLING and chosen == best:
            return settled, None
        text, limited = f"the search takes {chosen}", spelled("time_limit", limit)
        if limit is not None and chosen.seconds > limit:
            text += f", more than {limited}"
        if limit is not None and chosen != best:
            text += f"; {best}, more than {'' if best.seconds > limit else f'{SPARED:.0%} of '}{limited}"
        return settled, text

    @property
    def _fallback(self) -> str:
        """The proxy if no other one fits into the time limit."""
        return "weight" if self.widths else "uniform"

    def _rivals(self, *, calibrated: bool) -> tuple[str, ...]:
        """Return the proxies whose plans compete."""
        if self.rivals is not None:
            return self.rivals
        return RIVALS if self.proxy == "auto" and calibrated and not self.widths else ()

    def plan(self, problem: Problem) -> Plan:
        """Return the plan of least loss within the budget.

        Raises
        ------
        InfeasibleBudget
            If no selection of candidates meets the budget.
        ConfigError
            If the proxy, or a round, needs calibration data and there is none.
        """
        estimator = problem.estimator
        if estimator is None:
            raise ConfigError(
                "strategy 'compressnas' needs an estimator of candidates. Use rankfold.plan or rankfold.compress."
            )
        estimator.check(self.proxy_options, together=self.rounds > 0)
        if self.widths:
            return self._joint(problem, estimator)
        table = problem.table()
        check_reachable(problem, table)
        selection, search = self._best(problem, table, estimator)
        if self.rounds and selection:
            selection, search["together"] = self._rounds(problem, table, estimator, selection)
        reasons = dict.fromkeys(table.rows, "the budget is better spent here") | dict(table.reasons)
        chosen = {name: candidate for name, candidate in selection.items() if candidate is not None}
        resolved = replace(self, proxy=search["proxy"], rivals=())
        plan = make_plan(problem, resolved, chosen, reasons=reasons)
        return replace(plan, provenance=replace(plan.provenance, search=search))

    def _best(self, problem: Problem, table: CandidateTable, estimator: Estimator) -> Chosen:
        """Return the selection of the proxy, or of a rival whose network is closer to the original.

        The losses of layers do not quite add up: the best plan of a proxy may lose to one that the proxy considers
        worse. A rival that cannot meet the budget does not compete.
        """
        selection, search = own = self._of_proxy(problem, table, estimator)
        rivals = self._rivals(calibrated=estimator.batches is not None)
        if problem.budget is None or not rivals or not selection:
            return own
        plans = {search["proxy"]: own}
        for rival in rivals:
            if rival == "fisher" and self.proxy == "auto" and search["proxy"] == "network":
                continue  # the network has no gradients
            other = replace(self, proxy=rival, rivals=())
            estimator.check(other.proxy_options)
            with suppress(InfeasibleBudget):
                plans.setdefault(rival, other._of_proxy(problem, table, estimator))
        networks = {proxy: {**problem.fixed, **chosen} for proxy, (chosen, _) in plans.items()}
        losses = estimator.compare(self.proxy_options, networks)
        best = min(losses, key=lambda proxy: losses[proxy])  # of equal ones, the first
        return plans[best][0], {**plans[best][1], "compared": losses}

    def _of_proxy(self, problem: Problem, table: CandidateTable, estimator: Estimator) -> Chosen:
        """Return the selection of the proxy."""
        if self.proxy == "uniform":
            chosen, _ = Uniform().select(problem)
            return {name: chosen.get(name) for name in table.rows}, {"proxy": self.proxy}
        losses = estimator.single(self.proxy_options)
        limits = _limits(problem, table) if problem.budget is not None else self._least_params(table, losses)
        solved = _solved(table, losses, limits)
        if solved is None:
            assert problem.budget is not None
            raise InfeasibleBudget(
                f"budget {str(problem.budget)!r} cannot be met: each bound can, but not all of them together. "
                "Loosen one.",
                problem.budget.rows(table.total, table.least),
            )
        selection, solution = solved
        proxy = estimator.proxy(self.proxy_options)  # measuring may have shown that there are no gradients
        return selection, {"proxy": proxy, **_predicted(solution)}

    def _joint(self, problem: Problem, estimator: Estimator) -> Plan:
        """Return the plan of least loss with some widths."""
        if problem.budget is None or problem.budget.get(PEAK):
            wanted = "a budget" if problem.budget is None else "a budget without ram"
            raise ConfigError(f"{spelled('widths')} of strategy 'compressnas' needs {wanted}, such as \"params<=50%\".")
        channels = Channels(problem, criteria.get(self.criterion), 1)
        losses, limits = estimator.single(self.proxy_options), _limits(problem, problem.table())
        best = JointSearch(problem, channels, [1 - width for width in self.widths], losses).solve(limits)
        plans = {"joint": (NarrowPlan(narrowing=best.narrowing, chosen=best.chosen), _predicted(best))}
        chosen, compared = "joint", dict[str, float]()
        if self.proxy == "auto" and estimator.batches is not None:
            plans |= self._one_sided(problem, losses, limits)
            whole = {k: replace(one, chosen={**problem.fixed, **one.chosen}) for k, (one, _) in plans.items()}
            compared = estimator.compare_narrow(self.proxy_options, whole)
            least = min(compared, key=lambda name: compared[name], default="joint")
            if compared and compared[least] < CLEARLY * compared["joint"]:
                chosen = least
        narrow, search = plans[chosen]
        reasons = dict.fromkeys((layer.name for layer in problem.inventory), "the budget is better spent elsewhere")
        reasons |= {layer.name: layer.skip for layer in problem.inventory if layer.skip is not None}
        proxy = estimator.proxy(self.proxy_options)
        plan = make_plan(
            problem, replace(self, proxy=proxy), narrow.chosen, reasons=reasons, narrowing=narrow.narrowing
        )
        search = {"proxy": proxy, **search, **({"compared": compared, "selected": chosen} if compared else {})}
        return replace(plan, provenance=replace(plan.provenance, search=search))

    def _one_sided(
        self, problem: Problem, losses: Losses, limits: Mapping[str, int]
    ) -> dict[str, tuple[NarrowPlan, dict[str, float]]]:
        """Return the plans that only factor, and that only remove channels, if they meet the budget."""
        plans = dict[str, tuple[NarrowPlan, dict[str, float]]]()
        solved = _solved(problem.table(), losses, limits)
        if solved is not None:
            chosen = {name: candidate for name, candidate in solved[0].items() if candidate is not None}
            plans["factoring"] = NarrowPlan(chosen=chosen), _predicted(solved[1])
        with suppress(InfeasibleBudget):
            pruned = Prune(criterion=self.criterion).plan(problem)
            plans["pruning"] = NarrowPlan(narrowing=pruned.narrowing), {}
        return plans

    def _least_params(self, table: CandidateTable, losses: Losses) -> dict[str, int]:
        """Return the tightest limit on the parameters with a loss within the tolerance."""
        low, high = table.least("params") - 1, table.cost(()).params  # of the model with every layer kept
        while high - low > max(1, table.total.params // 1000):
            middle = (low + high) // 2
            solved = _solved(table, losses, {"params": middle})
            if solved is not None and solved[1].loss <= self.tolerance:
                high = middle
            else:
                low = middle
        return {"params": high}

    def _rounds(
        self, problem: Problem, table: CandidateTable, estimator: Estimator, selection: Selection
    ) -> tuple[Selection, list[float]]:
        """Refine a selection by interactions between layers; return it with the loss of the network in each round."""
        losses = estimator.single(self.proxy_options)
        limits = _limits(problem, table) if problem.budget is not None else self._least_params(table, losses)
        first, history, best = next(iter(selection)), [], selection
        unmeasured = estimator.unmeasured(self.proxy_options)  # cannot be measured in rounds either
        for number in range(self.rounds + 1):
            neighbors = {
                name: [candidate] if name in unmeasured else _neighbors(table, losses, limits, name, candidate)
                for name, candidate in selection.items()
            }
            if number == self.rounds:  # the last selection is only measured
                neighbors = {first: neighbors[first][:1]}
            measured = estimator.joint(self.proxy_options, {**problem.fixed, **selection}, neighbors)
            together = measured[first][0]  # the first neighbor is the selected candidate
            if history and together >= history[-1]:
                break
            history.append(together)
            best = selection
            if number == self.rounds:
                break
            # Subtracting the minimum keeps the losses nonnegative and does not affect the solution.
            local = {
                name: {_key(c): value - min(measured[name]) for c, value in zip(row, measured[name], strict=True)}
                for name, row in neighbors.items()
            }
            solved = _solved(table, local, limits, allowed=neighbors)
            if solved is None or solved[0] == selection:
                break
            selection = solved[0]
        return best, history


def _predicted(solved: Joint | Solution) -> dict[str, float]:
    """Return what a plan states of the search that found it."""
    return {"predicted_loss": solved.loss, "bound": solved.bound}


def _limits(problem: Problem, table: CandidateTable) -> dict[str, int]:
    assert problem.budget is not None
    limits = {bound.resource: problem.budget.limit(bound.resource, table.total) for bound in problem.budget.additive}
    return {resource: limit for resource, limit in limits.items() if limit is not None}


def _key(candidate: Candidate | None) -> tuple[str, Ranks]:
    return ("", ()) if candidate is None else (candidate.method, candidate.ranks)


def _kept(table: CandidateTable, name: str) -> list[None]:
    """Return the option to keep a layer, if it is allowed."""
    return [] if name in table.required else [None]


def _loss(losses: Mapping[tuple[str, Ranks], float], candidate: Candidate | None) -> float:
    """Return the loss of a candidate of a layer; 0 for a kept layer, unless it was measured."""
    return losses.get(_key(None), 0.0) if candidate is None else losses[_key(candidate)]


def _solved(
    table: CandidateTable,
    losses: Losses,
    limits: Mapping[str, int],
    allowed: Mapping[str, Sequence[Candidate | None]] | None = None,
) -> tuple[Selection, Solution] | None:
    """Return the selection of least loss within the limits of the whole model; None if there is none."""
    names = list(table.rows)
    rows: dict[str, list[Candidate | None]] = {
        name: [*_kept(table, name), *table.rows[name]] if allowed is None else list(allowed[name]) for name in names
    }
    elsewhere = table.cost(()) - sum((table.dense[name] for name in names), start=type(table.total)())
    options = []
    for name in names:
        costs = [table.dense[name] if c is None else c.cost for c in rows[name]]
        options.append(
            Options(
                loss=np.array([_loss(losses[name], c) for c in rows[name]]),
                costs=np.array([[cost.get(r) for r in limits] for cost in costs], dtype=np.int64),
            )
        )
    solution = solve(options, [limit - elsewhere.get(r) for r, limit in limits.items()])
    if solution is None:
        return None
    return {name: rows[name][index] for name, index in zip(names, solution.selection, strict=True)}, solution


def _neighbors(
    table: CandidateTable, losses: Losses, limits: Mapping[str, int], name: str, selected: Candidate | None
) -> list[Candidate | None]:
    """Return a selected candidate and its neighbors on the layer's front of cost and loss, with the kept layer."""

    def price(candidate: Candidate | None) -> float:
        cost = table.dense[name] if candidate is None else candidate.cost
        return table.share(cost, limits)

    def loss(candidate: Candidate | None) -> float:
        return _loss(losses[name], candidate)

    front: list[Candidate | None] = []
    for candidate in sorted([*table.rows[name], *_kept(table, name)], key=lambda c: (price(c), loss(c))):
        if candidate is selected or not front or loss(candidate) < loss(front[-1]):
            front.append(candidate)
    at = next(i for i, candidate in enumerate(front) if candidate is selected)
    return [selected, *front[max(0, at - NEIGHBORS) : at], *front[at + 1 : at + 1 + NEIGHBORS]]


registry.register(CompressNAS, summary="methods and ranks of all layers in one exact search")
