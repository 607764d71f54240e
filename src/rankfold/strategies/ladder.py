"""The settings of one layer in the order in which a loop tries them (Kokhazadeh et al. 2025, section 5.1, step 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rankfold import methods
from rankfold.cost.exploration import CORES, Exploration, Solution, Step, explore
from rankfold.records import PEAK, Candidate, LayerInfo, Ranks
from rankfold.strategies.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ladders:
    """The settings of layers, from the strongest compression to the mildest.

    Layers of equal shape share the exploration of their settings.

    Parameters
    ----------
    problem : Problem
        The strategy's input.
    objective : str
        The resource to minimize.
    step_size : float
        Share of a layer's parameters between two steps.
    max_sol : int
        Maximum number of settings per step.
    """

    problem: Problem
    objective: str
    step_size: float
    max_sol: int
    _known: dict[tuple[str, str], list[Candidate]] = field(default_factory=dict, init=False)
    _steps: dict[tuple[LayerInfo, str, float], list[list[Solution]]] = field(default_factory=dict, init=False)

    def of(self, layer: LayerInfo, method: str) -> list[Candidate]:
        """Return the settings of a method on a layer, which it supports; an empty list if none is smaller.

        The first is the cheapest setting of rank 1. Each further step removes `step_size` less of the layer's
        parameters and holds up to `max_sol` settings that remove its share, rounded to whole per cent: the one with the
        fewest MACs; from 2 on, also the one with the most MACs; from 3 on, also the one with the most equal ranks; the
        others are drawn at random. They are tried in this order. A method with a single rank
        has one setting in each step, the nearest; so has a step without a setting of its share, if there is one before
        the next step. Settings that cost as much as the layer in the objective, or take more RAM than the budget
        allows, are left out.
        """
        key = layer.name, method
        if key not in self._known:
            first = self._rank_one(layer, method)
            start = 1 - first.cost.params / max(self.problem.inventory.costs[layer.name].params, 1)
            rows = [[first]]
            for solutions in self._solutions(layer, method, start):
                rows.append([self._candidate(layer, method, s.ranks, s.options) for s in solutions])
            self._known[key] = [c for c in self._judged(layer, rows) if self._is_useful(c)]
        return self._known[key]

    def _solutions(self, layer: LayerInfo, method: str, start: float) -> list[list[Solution]]:
        """Return the settings of each step; the first step removes `step_size` less than `start`."""
        shares = [round(start - self.step_size * i, 6) for i in range(1, int(start / self.step_size) + 1)]
        key = replace(layer, name="", aliases=(), ties=(), skip=None, note=None), method, start
        if key not in self._steps:
            self._steps[key] = self._explored(layer, method, [share for share in shares if share > 0])
        return self._steps[key]

    def _explored(self, layer: LayerInfo, method: str, shares: Sequence[float]) -> list[list[Solution]]:
        options, seed = dict(self.problem.options.get(method, {})), self.problem.seed
        rows: dict[float, list[Solution]] = {}
        if len(methods.get(method, options).max_ranks(layer)) > 1 and shares:
            how = Exploration(steps=shares, random=max(0, self.max_sol - 3), seed=seed, useful=True)
            rows = {step.reduction: self._selected(step) for step in explore(layer, method, how, options=options).steps}
        missing = [share for share in shares if not rows.get(share)]
        if missing:
            how = Exploration(steps=missing, tolerance=self.step_size / 2, useful=True)
            for step in explore(layer, method, how, options=options).steps:
                rows[step.reduction] = [step.equal_ranks] if step.equal_ranks is not None else []
        return [rows[share] for share in shares]

    def _selected(self, step: Step) -> list[Solution]:
        """Return the settings of a step that are tried."""
        fixed = [step.fewest_macs, step.most_macs, step.equal_ranks][: self.max_sol]
        solutions = [*(solution for solution in fixed if solution is not None), *step.random]
        return [solution for i, solution in enumerate(solutions) if solution not in solutions[:i]]

    def _rank_one(self, layer: LayerInfo, method: str) -> Candidate:
        """Return the setting of rank 1 with the least cost, over all shapes of the factors."""
        options = self.problem.options.get(method, {})
        shapes = [{**options, **shape} for shape in methods.get(method, options).variants(layer, CORES)] or [options]
        lengths = [len(methods.get(method, shape).max_ranks(layer)) for shape in shapes]
        ones = [self._candidate(layer, method, (1,) * n, shape) for n, shape in zip(lengths, shapes, strict=True)]
        return min(ones, key=lambda one: one.cost.get(self.objective))

    def _candidate(self, layer: LayerInfo, method: str, ranks: Ranks, options: Mapping[str, Any]) -> Candidate:
        """Return a setting, its ranks rounded up to multiples, without its error."""
        factorization, multiple = methods.get(method, options), self.problem.rank_multiple
        limits = factorization.max_ranks(layer)
        rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in zip(ranks, limits, strict=True))
        return self.problem.pricing.candidate(layer, factorization, rounded, options=options)

    def _judged(self, layer: LayerInfo, rows: Sequence[Sequence[Candidate]]) -> list[Candidate]:
        """Return the different settings of all steps, in order, with their predicted errors."""
        groups: dict[str, dict[Ranks, Candidate]] = defaultdict(dict)  # each shape of the factors is prepared once
        for candidate in (c for row in rows for c in row):
            groups[repr(sorted(candidate.options.items()))].setdefault(candidate.ranks, candidate)
        errors: dict[tuple[str, Ranks], float] = {}
        for group, members in groups.items():
            one = next(iter(members.values()))
            prepared = self.problem.prepared(layer, methods.get(one.method, one.options))
            errors |= {(group, ranks): prepared.error(ranks) for ranks in members}
        rungs: list[Candidate] = []
        for row in rows:
            known = [replace(c, error=errors[repr(sorted(c.options.items())), c.ranks]) for c in row]
            rungs += [c for i, c in enumerate(known) if c not in (*rungs, *known[:i])]
        return rungs

    def _is_useful(self, candidate: Candidate) -> bool:
        pricing, budget = self.problem.pricing, self.problem.budget
        dense, profile = pricing.inventory.costs[candidate.layer], pricing.profile
        limit = None if profile is None or budget is None else budget.limit(PEAK, profile.peak)
        fits = limit is None or (candidate.ram or 0) <= limit
        smaller = candidate.cost.get(self.objective) < dense.get(self.objective)
        return pricing.is_smaller(candidate) and smaller and fits
