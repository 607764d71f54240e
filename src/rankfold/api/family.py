"""A family of models: many plans of one model applied, measured and saved, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold._hashing import json_hash, module_hash, tensor_hash
from rankfold._progress import track
from rankfold._version import __version__
from rankfold.api.applying import apply_mode
from rankfold.api.identity import metric_identity
from rankfold.api.proving import check_kept, reloaded
from rankfold.calibration import SequentialConfig
from rankfold.candidates.cache import Cache
from rankfold.candidates.outputs import data_hash
from rankfold.cost import Pricing
from rankfold.evaluation import evaluate as measure
from rankfold.evaluation import metric_name
from rankfold.factor.moments import Moments
from rankfold.inventory import evaluating, inspect
from rankfold.records import Budget, Plan
from rankfold.reporting.sweep import SweepPoint
from rankfold.storage import save


def folder_name(budget: str) -> str:
    """Return a budget as the name of a folder: ``params-25pct-macs-50pct``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", budget.replace("%", "pct")).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Applies plans one at a time, measures and saves what comes out, and lets go of it.

    Parameters
    ----------
    model : Module
        The original; left untouched.
    batches : iterable or None
        Calibration data that can be gone through more than once.
    moments : mapping or None
        Second moments by layer name.
    mode : str
        How factors are found, as `rankfold.api.applying.check_reconstruct` returns it.
    sequential : SequentialConfig
        Options of mode "sequential".
    evaluate : callable or None
        What is measured.
    dense : float or None
        Its value of the original.
    output : str, Path or None
        Folder of the artefacts.
    example_input : object
        What the models are proved on.
    pricing : Pricing
        Of the original.
    cache : Cache or None
        Keeps what was measured.
    """

    model: nn.Module
    batches: Iterable[Any] | None
    moments: Mapping[str, Moments] | None
    mode: str
    sequential: SequentialConfig
    evaluate: Callable[[nn.Module], float] | None
    dense: float | None
    output: str | Path | None
    example_input: Any
    pricing: Pricing
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
        measured = set(feasible if number is None else _evenly(feasible, number)) if self.evaluate else set[int]()
        found = list(points)
        context = self._context() if self.cache is not None and measured else None
        cache = self.cache if context is not None else None
        values: dict[str, float] = {}
        for i in track([i for i in feasible if i in measured or self.output is not None], "applying and measuring"):
            plan = found[i].plan
            assert plan is not None
            key = {**(context or {}), "plan": {name: choice.to_dict() for name, choice in plan.layers.items()}}
            same = str(key["plan"])  # budgets that do not bind share a plan
            if i in measured and same not in values and cache is not None:
                known = cache.get(key, 2)
                values |= {} if known is None else {same: known[0] - known[1]}
            fresh = i in measured and same not in values
            if fresh or self.output is not None:
                small = self._made(plan)
                if fresh and self.evaluate is not None:
                    values[same] = measure(small, self.evaluate)
                    if cache is not None:
                        cache.put(key, [max(values[same], 0.0), max(-values[same], 0.0)])  # it keeps no negatives
                if self.output is not None:
                    folder = save(small, Path(self.output) / folder_name(found[i].budget))
                    found[i] = replace(found[i], folder=str(folder))
                del small
            if i in measured:
                found[i] = replace(found[i], metric=values[same])
        return found

    def _made(self, plan: Plan) -> nn.Module:
        """Return the model of a plan as its artefact gives it; it is proved, and keeps the plan's budget."""
        small = apply_mode(
            self.model, plan, self.batches, self.mode, moments=self.moments, sequential=self.sequential,
            example_input=self.example_input,
        ).model  # fmt: skip
        small, _ = reloaded(small, self.model, self.example_input)
        budget = plan.provenance.budget
        if budget is not None:
            built = self.pricing.built(inspect(small, self.example_input), plan).total
            check_kept(Budget.parse(budget), built, self.pricing.inventory.total)
        return small

    def _context(self) -> dict[str, Any] | None:
        """Return all that a metric depends on besides the plan, as far as it can be seen; None if too little can."""
        loader = getattr(self.evaluate, "loader", None)
        data: list[str | None] = []
        with evaluating(self.model):  # data may draw from torch's random state
            for batches, purpose in ((loader, "evaluation"), (self.batches, "calibration")):
                found = None if batches is None else data_hash(self.model, batches, purpose=purpose)
                if batches is not None and found is None:
                    return None
                data.append(found)
        moments = self.moments or {}
        named = {f"{name}.{k}": t for name, of_layer in moments.items() for k, t in of_layer.tensors().items()}
        return {
            "what": "metric of a plan",
            "model": module_hash(self.model),
            "metric": [metric_name(self.evaluate), self.dense, json_hash(metric_identity(self.evaluate))],
            "data": data,
            "moments": tensor_hash(named),
            "reconstruct": [self.mode, repr(self.sequential)],
            "versions": [__version__, str(torch.__version__)],
        }


def _evenly(items: Sequence[int], number: int) -> list[int]:
    """Return so many of the items, evenly spread, first and last included; the middle one of one."""
    if number >= len(items):
        return list(items)
    if number == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
