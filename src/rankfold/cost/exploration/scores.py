"""Scores from 1 to 5 of the properties of an exploration space: Table 6 of Kokhazadeh et al. (2025)."""

from __future__ import annotations

from collections.abc import Sequence

from rankfold import methods
from rankfold.cost.exploration.record import Space

METRICS = (
    "rank configurations",
    "best params",
    "worst params",
    "best MACs",
    "worst MACs",
    "best memory",
    "worst memory",
    "exploration space",
    "params coverage",
    "MACs coverage",
    "flexibility",
    "decomposition time",
)
"""In the order of the paper's table; higher is better."""


def scores(space: Space) -> dict[str, int | None]:
    """Return the score of each of `METRICS`; None if there are no valid settings, or no time was measured.

    Rank configurations are counted by the ranks that can be chosen; the paper also counts those at the ends of a train.
    The time is the mean over the steps of preparing and factoring the layer once.
    """
    scores: dict[str, int | None] = dict.fromkeys(METRICS)
    ranks = len(space.limits)
    scores["rank configurations"] = 2 if ranks == 1 else 3 if ranks <= 3 else 4 if ranks == 4 else 5
    scores["exploration space"] = _grade(space.size, (100, 1_000, 10_000, 1_000_001))
    flexibility = methods.registry.entry(space.method).plugin.flexibility
    scores["flexibility"] = (1 if ranks == 1 else 3) if flexibility is None else flexibility
    if space.decomposition_s is not None:
        scores["decomposition time"] = 6 - _grade(space.decomposition_s, (5, 30, 60, 300))
    if space.params is None or space.macs is None or space.memory is None:
        return scores
    for name, extent in (("params", space.params), ("MACs", space.macs)):
        scores[f"best {name}"] = _grade(extent.best, (0.80, 0.90, 0.94, 0.98))
        scores[f"worst {name}"] = _grade(extent.worst, (0.02, 0.06, 0.10, 0.20))
        scores[f"{name} coverage"] = _grade(extent.coverage, (0.70, 0.85, 0.93, 0.98))
    best, growth = space.memory.best, -space.memory.worst
    scores["best memory"] = 1 if best <= 0 else _grade(best, (0, 0.30, 0.60, 0.90))
    scores["worst memory"] = 5 if growth <= 0 else 5 - _grade(growth, (0.25, 0.75, 1.5))
    return scores


def _grade(value: float, bounds: Sequence[float]) -> int:
    """Return 1 plus the number of bounds that the value reaches."""
    return 1 + sum(value >= bound for bound in bounds)
