"""Bounds on the accuracy: the smallest model that is good enough, by measuring a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

from rankfold._config import Code, spelled
from rankfold._progress import say, track
from rankfold.api.planning import Planner
from rankfold.api.realizing import Draft
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.evaluation import Metric
from rankfold.records import ACCURACY, Bound, Budget, Plan
from rankfold.strategies import Handle
from rankfold.workbench import Bench

MOST = 7
"""Models that are measured at most."""
STEP = 0.01
"""The search ends when the budget is known to this share of what can be removed."""
SAVED = "smallest model"
"""Name under which the search is saved."""
ROUNDING = 1e-9
"""A difference of two metrics is not quite the decimal that it reads as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One model that was measured: its budget, the metric, and by how much that is worse than the original's."""

    budget: str
    value: float
    drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Smallest:
    """The smallest model that is good enough, and what was tried on the way to it."""

    draft: Draft
    chosen: Trial
    trials: tuple[Trial, ...]

    def notes(self, budget: Budget, metric: str, dense: float) -> list[str]:
        """Return what a report says of the search."""
        bound = ", ".join(map(str, budget.get(ACCURACY)))
        first = (
            f"{bound}: {self.chosen.budget} is the tightest budget that meets it, of {len(self.trials)} tried; "
            f"{metric} of the dense model {dense:.4g}"
        )
        return [first, *(f"tried {t.budget}: {metric} {t.value:.4g}, {_worse(t.drop)}" for t in self.trials)]


def check_searchable(budget: Budget | None, has_metric: bool) -> bool:
    """Return whether a budget bounds the accuracy.

    Raises
    ------
    ConfigError
        If it does and there is no metric.
    """
    if budget is None or not budget.get(ACCURACY):
        return False
    if not has_metric:
        raise ConfigError(
            f"budget {str(budget)!r} bounds {ACCURACY}, which needs a metric. Pass "
            f"{spelled('evaluate', Code('rf.top1(loader)'))}."
        )
    return True


def smallest_within(
    planner: Planner,
    budget: Budget,
    attempt: Callable[[Plan], Draft],
    *,
    dense: float,
    metric: Metric,
    bench: Bench[Draft] | None = None,
) -> Smallest:
    """Return the smallest model whose metric drops by no more than the budget allows.

    "Smallest" refers to the first other resource in the budget, or to parameters. The search is a bisection. It assumes
    that a larger budget gives a model that is at least as good, which holds for the predicted loss and, up to noise,
    for the metric. The metric of the returned model is always measured.

    Parameters
    ----------
    planner : Planner
        The model's problem.
    budget : Budget
        With a bound on ``accuracy_drop``; its other bounds hold for every model that is tried.
    attempt : callable
        Applies a plan and measures the model. Only the best one is kept.
    dense : float
        The metric of the original.
    metric : Metric
        What is measured.
    bench : Bench, optional
        Saves the search after each model that was measured; an interrupted search resumes from there.

    Raises
    ------
    InfeasibleBudget
        If the other bounds cannot be met, or the mildest compression already costs too much accuracy.
    """
    allowed = min(bound.value for bound in budget.get(ACCURACY))
    rest = budget.without(ACCURACY)
    resource = rest.additive[0].resource if rest is not None and rest.additive else "params"
    table = planner.problem.table()
    total = max(table.total.get(resource), 1)
    low, whole = table.least(resource) / total, table.cost(()).get(resource) / total
    step = STEP * (whole - low)
    limit = None if rest is None else rest.limit(resource, table.total)
    high = whole - step if limit is None else min(whole - step, limit / total)
    bounded = limit is not None and limit / total <= whole - step
    # Raises before any work if the other bounds cannot be met.
    mildest = planner.plan(rest if bounded else _at(high, resource, rest))

    tried = _Tried.recalled(bench, lambda value: metric.drop(dense, value), allowed + ROUNDING)

    def untried(low: float, high: float) -> Iterator[Plan]:
        """Yield plans to measure: of the middle of the interval that holds the smallest budget, until it is short."""
        for _ in range(4 * MOST):
            if high - low <= step or len(tried.trials) >= (MOST if tried.best is not None else MOST - 1):
                return
            middle = (low + high) / 2
            try:
                plan = planner.plan(_at(middle, resource, rest))
            except InfeasibleBudget:  # not together with the other bounds
                low = middle
                continue
            if not tried.has(plan):  # another budget with the same plan is the best one already if it is good
                yield plan
            low, high = (low, middle) if tried.fits[plan.decisions_text] else (middle, high)

    for plan in track(untried(low, high), "searching for the smallest model", total=MOST):
        tried.add(plan, attempt(plan))
    if tried.best is None and not tried.has(mildest):
        tried.add(mildest, attempt(mildest))
    if tried.best is None:
        raise _unreachable(budget, tried.trials[-1], dense, metric.name)
    return Smallest(draft=tried.best[0], chosen=tried.best[1], trials=tuple(tried.trials))


@dataclass(kw_only=True)
class _Tried:
    """The models that were measured, by their decisions: whether each is good enough, and the last that is."""

    drop: Callable[[float], float]
    allowed: float
    bench: Bench[Draft] | None
    fits: dict[str, bool] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    best: tuple[Draft, Trial] | None = None

    @classmethod
    def recalled(cls, bench: Bench[Draft] | None, drop: Callable[[float], float], allowed: float) -> _Tried:
        """Return what an interrupted search had tried, or nothing."""
        tried = cls(drop=drop, allowed=allowed, bench=bench)
        saved = None if bench is None else bench.recall(SAVED)
        if saved is None:
            return tried
        state, draft = saved[0], cast("Draft", saved[1])
        tried.fits, tried.trials = state["fits"], [Trial(**trial) for trial in state["trials"]]
        if state["best"] is not None:
            draft.values = state["values"]
            tried.best = draft, tried.trials[state["best"]]
        say(f"resuming the search for the smallest model after {len(tried.trials)} models")
        return tried

    def has(self, plan: Plan) -> bool:
        """Return whether the model of a plan was measured."""
        return plan.decisions_text in self.fits

    def add(self, plan: Plan, draft: Draft) -> None:
        """Record a model, and save the search."""
        drop = self.drop(draft.value)
        self.trials.append(Trial(budget=plan.provenance.budget or "", value=draft.value, drop=drop))
        self.fits[plan.decisions_text] = drop <= self.allowed
        if drop <= self.allowed:
            self.best = draft, self.trials[-1]
        if self.bench is not None:
            kept = draft if self.best is None else self.best[0]
            state = {
                "fits": self.fits, "trials": [asdict(trial) for trial in self.trials], "values": kept.values,
                "best": None if self.best is None else self.trials.index(self.best[1]),
            }  # fmt: skip
            self.bench.remember(SAVED, state, Handle(kept))


def _at(share: float, resource: str, rest: Budget | None) -> Budget:
    """Return the other bounds with a tighter one on the resource, in hundredths of a per cent."""
    others = None if rest is None else rest.without(resource)
    bound = Bound(resource=resource, value=max(int(share * 10**4 + ROUNDING), 1) / 100 / 100, relative=True)
    return Budget((bound, *(others.bounds if others is not None else ())))


def _worse(drop: float) -> str:
    return f"{drop:.4g} worse" if drop > 0 else f"{-drop:.4g} better" if drop < 0 else "the same"


def _unreachable(budget: Budget, mildest: Trial, dense: float, metric: str) -> InfeasibleBudget:
    return InfeasibleBudget(
        f"budget {str(budget)!r} cannot be met: already with {mildest.budget}, the mildest compression tried, {metric} "
        f"is {mildest.value:.4g} against {dense:.4g} of the dense model, {_worse(mildest.drop)}. Allow a larger drop "
        f"or loosen the other bounds; more calibration data, {spelled('reconstruct', 'sequential')} or fine-tuning "
        f"({spelled('finetune', Code('rf.FineTune(...)'))}) may also help."
    )
