"""Bounds on latency: plan by the times of layers, measure the whole model, and plan again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from rankfold._progress import say
from rankfold.errors import InfeasibleBudget
from rankfold.records import LATENCY, Plan
from rankfold.records.amounts import elapsed

MOST = 6
"""Models that are measured at most."""
CLOSE = 0.95
"""A model that uses at least this share of the bound is not replaced by a slower one."""
AIM = 0.98
"""Share of the bound that the next plan aims at, so that errors of a measurement rarely exceed it."""
TOLERANCE = 0.05
"""If no model meets the bound, one that exceeds it by at most this share is accepted: other runs differ by as much."""
NOISE = 0.01
"""Without a bound, a model that is slower than the dense one by at most this share counts as equally fast."""
FINEST = 0.005
"""The search ends when the limit is known to this share of the dense model's time."""
TRUSTED = (0.2, 5.0)
"""Range of the ratio of measured to predicted saving that corrects the next limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTrial:
    """One model that was measured: the limit on the sum of its layers, that sum, and the measured time, in ns."""

    limit: int | None
    predicted: int
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPlan:
    """A plan whose model was measured, and every trial on the way to it."""

    plan: Plan
    trial: LatencyTrial
    trials: tuple[LatencyTrial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON-ready values."""
        return {"measured_ns": self.trial.measured, "trials": [asdict(trial) for trial in self.trials]}


@dataclass(kw_only=True)
class LatencySearch:
    """The search for a plan whose model is measured to meet a bound.

    The times of single layers do not quite add up: runtimes fuse operations, convert layouts and reuse caches. The
    limit on the sum is therefore corrected by the ratio of measured and predicted saving, within the interval between
    the limits that are known to be met and to be exceeded.

    Parameters
    ----------
    solve : callable
        Returns the plan for a limit on the sum of the layers' times; None sets no limit. Raises `InfeasibleBudget`.
    predict, measure : callable
        Return the predicted and the measured time of a plan's model.
    limit : int
        The bound.
    dense : int
        The time of the dense model.
    bounded : bool
        Whether the bound is the user's, so that the model should use it up; otherwise the first model that meets it is
        returned.
    """

    solve: Callable[[int | None], Plan]
    predict: Callable[[Plan], int]
    measure: Callable[[Plan], int]
    limit: int
    dense: int
    bounded: bool
    trials: list[LatencyTrial] = field(default_factory=list, init=False)
    _plans: dict[str, tuple[Plan, LatencyTrial]] = field(default_factory=dict, init=False)

    def run(self) -> TimedPlan:
        """Return the slowest plan that meets the bound, of those that were measured.

        Raises
        ------
        InfeasibleBudget
            If none does; `trials` are the measured ones. Without any, the other bounds cannot be met.
        """
        low, high = 0, self.dense
        at = min(self.limit, self.dense) if self.bounded else None
        while len(self.trials) < MOST:
            try:
                plan = self.solve(at)
            except InfeasibleBudget:
                if at is None or at >= self.dense:
                    raise
                low, at, plan = self._strongest(at)
            known = len(self.trials)
            trial = self._tried(plan, at)
            met = trial.measured <= self._accepted
            if met and (not self.bounded or trial.measured >= CLOSE * self.limit):
                break
            if met:
                low = max(low, trial.predicted if at is None else at)
            else:
                high = min(high, trial.predicted if at is None else at)
            if len(self.trials) == known or high - low <= FINEST * self.dense:
                break
            at = self._corrected(trial, low, high)
        return self._best()

    @property
    def _accepted(self) -> float:
        """The longest time that meets the bound."""
        return self.limit if self.bounded else (1 + NOISE) * self.limit

    def _strongest(self, infeasible: int) -> tuple[int, int, Plan]:
        """Return a limit that no plan meets, the least that one meets, and this plan."""
        low, high = infeasible, self.dense
        plan = self.solve(high)
        while high - low > FINEST * self.dense:
            middle = (low + high) // 2
            try:
                high, plan = middle, self.solve(middle)
            except InfeasibleBudget:
                low = middle
        return low, high, plan

    def _tried(self, plan: Plan, at: int | None) -> LatencyTrial:
        known = plan.decisions_text
        if known not in self._plans:
            trial = LatencyTrial(limit=at, predicted=self.predict(plan), measured=self.measure(plan))
            say(
                f"model {len(self.trials) + 1} takes {elapsed(trial.measured)}, predicted {elapsed(trial.predicted)}; "
                f"the bound is {elapsed(self.limit)}"
            )
            self.trials.append(trial)
            self._plans[known] = plan, trial
        return self._plans[known][1]

    def _corrected(self, trial: LatencyTrial, low: int, high: int) -> int:
        """Return the next limit: the one at which the model is expected to take `AIM` of the bound."""
        predicted, measured = self.dense - trial.predicted, self.dense - trial.measured
        ratio = measured / predicted if predicted > 0 else 1.0
        ratio = min(max(ratio, TRUSTED[0]), TRUSTED[1])
        at = round(self.dense - (self.dense - AIM * self.limit) / ratio)
        return at if low < at < high else (low + high) // 2

    def _best(self) -> TimedPlan:
        tried = sorted(self._plans.values(), key=lambda pair: pair[1].measured)
        meeting = [pair for pair in tried if pair[1].measured <= self._accepted]
        near = [pair for pair in tried[:1] if self.bounded and pair[1].measured <= (1 + TOLERANCE) * self.limit]
        if not meeting and not near:
            least = tried[0][1].measured
            raise InfeasibleBudget(
                f"the fastest of {len(tried)} models tried takes {elapsed(least)}, {least / self.dense:.1%} of the "
                f"dense model's {elapsed(self.dense)}; {elapsed(self.limit)} is the bound.",
                [(LATENCY, self.limit, least, self.dense)],
            )
        plan, trial = meeting[-1] if meeting else near[0]
        return TimedPlan(plan=plan, trial=trial, trials=tuple(self.trials))
