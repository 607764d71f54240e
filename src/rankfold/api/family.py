"""A family of models: many plans of one model applied, measured and saved, one at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankfold._config import is_number
from rankfold._progress import track
from rankfold.api.realizing import Clock, Destination, Realizer
from rankfold.candidates.cache import Cache
from rankfold.records import Plan
from rankfold.reporting.sweep import SweepPoint


def folder_name(budget: str) -> str:
    """Return a budget as the name of a folder: ``params-25pct-macs-50pct``.

    Wildcards of parts are replaced by characters that every file system allows, so that different parts have different
    names: ``params-conv@-50pct``.
    """
    text = budget.replace("%", "pct").translate({ord("*"): "@", ord("?"): "~"})
    return re.sub(r"[^A-Za-z0-9.@~\[\]!]+", "-", text).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Realizes plans one at a time, and frees each model before the next.

    Parameters
    ----------
    realizer : Realizer
        Makes the models and measures them.
    dense : float or None
        The metric of the original.
    output : Destination or None
        Where the artifacts go.
    cache : Cache or None
        Keeps what was measured.
    """

    realizer: Realizer
    dense: float | None
    output: Destination | None
    cache: Cache | None

    def realized(self, points: Sequence[SweepPoint], number: int | None) -> list[SweepPoint]:
        """Return the points with what was measured, and where each was saved.

        Parameters
        ----------
        points : sequence of SweepPoint
            Those without a plan stay as they are.
        number : int or None
            How many are measured; None is all.
        """
        feasible = [i for i, point in enumerate(points) if point.plan is not None]
        count = len(feasible) if number is None else number
        measured = set(_evenly(feasible, count)) if self.realizer.metric is not None else set[int]()
        wanted = feasible if self.output is not None else sorted(measured)
        known = _Values(self.cache, self.realizer.identity(self.dense) if self.cache is not None and measured else None)
        result = list(points)
        for i in track(wanted, "applying and measuring"):
            result[i] = self._point(points[i], known if i in measured else None)
        return result

    def _point(self, point: SweepPoint, known: _Values | None) -> SweepPoint:
        """Return one point, measured if `known` is given, and saved if there is an output."""
        assert point.plan is not None
        value = None if known is None else known.get(point.plan)
        fresh = known is not None and value is None
        if fresh or self.output is not None:
            realizer = self.realizer
            realizer.clock = Clock()
            draft = realizer.apply(point.plan, measured=False)
            if self.dense is not None:
                draft.values["dense"] = self.dense
            made = realizer.finish(draft, measured=fresh)
            if known is not None and fresh:
                value = draft.value
                known.put(point.plan, value)
            if self.output is not None:
                to = self.output.inside(folder_name(point.budget))
                made.save(to)
                point = replace(point, folder=str(to.folder))
        return point if value is None else replace(point, metric=value)


class _Values:
    """The metric by plan: budgets that do not bind share a plan, and a sweep that was killed resumes from the cache."""

    def __init__(self, cache: Cache | None, context: dict[str, Any] | None) -> None:
        self._cache = cache if context is not None else None
        self._context = context or {}
        self._values: dict[str, float] = {}

    def get(self, plan: Plan) -> float | None:
        """Return the value of a plan, if it is known."""
        key = self._key(plan)
        same = str(key["plan"])
        if same not in self._values and self._cache is not None:
            kept = self._cache.get(key)
            if is_number(kept):
                self._values[same] = float(kept)
        return self._values.get(same)

    def put(self, plan: Plan, value: float) -> None:
        """Keep the value of a plan."""
        key = self._key(plan)
        self._values[str(key["plan"])] = value
        if self._cache is not None:
            self._cache.put(key, value)

    def _key(self, plan: Plan) -> dict[str, Any]:
        return {**self._context, "plan": plan.decisions}


def _evenly(items: Sequence[int], number: int) -> list[int]:
    """Return `number` of the items, evenly spread, with the first and the last; of one, the middle item."""
    if number >= len(items):
        return list(items)
    if number == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
