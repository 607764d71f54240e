"""The settings of one layer in the order in which a loop tries them (Kokhazadeh et al. 2025, section 5.1, step 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rankfold import methods
from rankfold.cost.exploration import CORES, Exploration, Solution, Step, explore
from rankfold.records import Candidate, LayerInfo, Ranks
from rankfold.strategies.problem import Problem


def ladder(
    problem: Problem, layer: LayerInfo, method: str, *, objective: str, step_size: float, max_sol: int
) -> list[Candidate]:
    """Return the settings of one method on a layer, from the strongest compression to the mildest.

    The first is the cheapest setting of rank 1. Each further step removes `step_size` less of the layer's parameters
    and holds up to `max_sol` settings that remove its share, rounded to whole per cent: the one with the fewest MACs;
    from 2 on, also the one with the most MACs; from 3 on, also the one with the most equal ranks; the others are drawn
    at random. They are tried in the order of their predicted errors. A method with a single rank has one setting in
    each step, the nearest; so has a step without a setting of its share, if there is one before the next step. Settings
    that cost as much as the layer in the objective are left out.

    Parameters
    ----------
    problem : Problem
        The strategy's input.
    layer : LayerInfo
        A layer that the method supports.
    method : str
        The factorization.
    objective : str
        The resource to minimise.
    step_size : float
        Share of the layer's parameters between two steps.
    max_sol : int
        Settings of one step at most.

    Returns
    -------
    list of Candidate
        Empty if no setting is smaller than the layer.
    """
    options = dict(problem.options.get(method, {}))
    first = _rank_one(problem, layer, method, options, objective)
    dense = problem.inventory.costs[layer.name]
    start = 1 - first.cost.params / max(dense.params, 1)
    shares = [round(start - step_size * i, 6) for i in range(1, int(start / step_size) + 1)]
    rungs = [first]
    for row in _steps(problem, layer, method, [share for share in shares if share > 0], step_size, max_sol):
        settings = [_candidate(problem, layer, method, s.ranks, s.options) for s in row]
        rungs += sorted((c for c in settings if c not in rungs), key=lambda c: c.error)
    return [c for c in rungs if problem.pricing.is_smaller(c) and c.cost.get(objective) < dense.get(objective)]


def _steps(
    problem: Problem, layer: LayerInfo, method: str, shares: list[float], step_size: float, max_sol: int
) -> list[list[Solution]]:
    """Return the settings that are tried in each step, given by the share of the parameters that it removes."""
    if not shares:
        return []
    options = dict(problem.options.get(method, {}))
    how = Exploration(steps=shares, random=max(0, max_sol - 3), seed=problem.seed, useful=True)
    wide = explore(layer, method, replace(how, tolerance=step_size / 2, random=0), options=options).steps
    if len(methods.get(method, options).max_ranks(layer)) == 1:
        return [[step.equal_ranks] for step in wide if step.equal_ranks is not None]
    near = explore(layer, method, how, options=options).steps
    rows = [_selected(step, max_sol) or [other.equal_ranks] for step, other in zip(near, wide, strict=True)]
    return [[solution for solution in row if solution is not None] for row in rows]


def _selected(step: Step, max_sol: int) -> list[Solution]:
    """Return the settings of a step that are tried."""
    fixed = [step.fewest_macs, step.most_macs, step.equal_ranks][:max_sol]
    solutions = [*(solution for solution in fixed if solution is not None), *step.random]
    return [solution for i, solution in enumerate(solutions) if solution not in solutions[:i]]


def _rank_one(problem: Problem, layer: LayerInfo, method: str, options: Mapping[str, Any], objective: str) -> Candidate:
    """Return the setting of rank 1 with the least cost, over all shapes of the factors."""
    shapes = [{**options, **shape} for shape in methods.get(method, options).variants(layer, CORES)]
    ones = [
        _candidate(problem, layer, method, (1,) * len(methods.get(method, shape).max_ranks(layer)), shape)
        for shape in shapes or [options]
    ]
    return min(ones, key=lambda one: one.cost.get(objective))


def _candidate(problem: Problem, layer: LayerInfo, method: str, ranks: Ranks, options: Mapping[str, Any]) -> Candidate:
    """Return a setting as a candidate with its predicted error; ranks are rounded up to multiples."""
    factorization, multiple = methods.get(method, options), problem.rank_multiple
    limits = factorization.max_ranks(layer)
    rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in zip(ranks, limits, strict=True))
    moments = None if problem.estimator is None else problem.estimator.moments
    prepared = methods.prepare(factorization, problem.weight(layer.name), layer, (moments or {}).get(layer.name))
    candidate = problem.pricing.candidate(layer, factorization, rounded, options=options)
    return replace(candidate, error=prepared.error(rounded))
