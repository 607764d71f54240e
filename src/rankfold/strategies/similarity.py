"""``similarity``: ranks are raised until the feature maps of the layers agree with the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, product
from typing import Literal, get_args

from rankfold import methods
from rankfold._config import is_integer, is_number, require
from rankfold.candidates import DEFAULT_PAIR
from rankfold.cost.exploration import layer_of
from rankfold.errors import ConfigError, InfeasibleBudget, NoMatchingLayer, UnknownNameError
from rankfold.records import ACCURACY, Candidate, LayerInfo, Plan
from rankfold.strategies.contract import Strategy, advice, make_plan, registry
from rankfold.strategies.ladder import Ladders
from rankfold.strategies.problem import Problem
from rankfold.strategies.raising import Outcome, Raising, Rules

Objective = Literal["params", "macs", "memory"]
Coverage = Literal["layers", "objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity(Strategy):
    """Exploration by feature-map similarity (Kokhazadeh et al. 2025, section 5).

    The loop of section 5.1, for one factorization of convolutions and one of linear layers and 1x1 convolutions:

    1. All target layers start at rank 1.
    2. The compressed model is fine-tuned once, with the recipe of the call.
    3. If its metric is at most `drop` worse than the original's, it is the result. A bound on ``accuracy_drop`` in the
       budget replaces `drop`.
    4. Otherwise, the feature maps of each layer are compared with the original's by their cosine similarity, after the
       activation, pooling and normalization that follow; each layer receives the original's input.
    5. A layer at or above its threshold keeps its ranks. All others take their next setting
       (`rankfold.strategies.ladder.Ladders`), and the loop continues with step 2.

    With several factorizations of either kind among the methods of the search, the loop runs once for each pair.
    Section 5.2 then combines them: each layer takes the setting, among the results, that is cheapest in the objective.
    This hybrid is fine-tuned, once more if needed, and if its metric is still too low, the loop continues from it. The
    result is the smaller of the hybrid and the best pair. Pairs that cannot meet the budget are left out.

    The loop always ends: each round moves at least one layer to its next setting, and a layer without a next setting
    is kept. With a cache folder, the loop is saved after each round and resumes from there. Where the paper is
    silent, the choices below are those that gave the smaller model (docs/similarity.md has the comparison).

    Parameters
    ----------
    objective : {"params", "macs", "memory"}
        The resource to minimize; it selects the target layers, and the settings of a hybrid.
    coverage : float
        The targets are the largest layers in the objective. They are this share, 0..1, of all layers ("90 % of the
        layers" in the paper), or carry this share of the objective.
    coverage_of : {"layers", "objective"}
        What `coverage` is a share of; rounded down for layers, but at least one.
    drop : float
        Largest drop of the metric, 0..1, if the budget does not bound it; 0.015 is 1.5 points of an accuracy. Without
        a bound on ``accuracy_drop``, the loop also ends with the last model that meets the other bounds.
    threshold, branched_threshold : float
        A layer whose similarity is at least this keeps its ranks. `threshold` applies to sequential parts of the
        network, and `branched_threshold` to parts that data can bypass, such as residual, inception, fire and dense
        blocks.
    thresholds : mapping of str to float
        Thresholds of single layers, by name.
    step_size : float
        Share of a layer's parameters between two compression steps; 0.02, 0.05 or 0.1 in the paper.
    max_sol : int
        Maximum number of settings per step; 1, 3 or 10 in the paper.
    samples : int
        Calibration samples on which feature maps are compared.
    carry : bool
        Whether layers whose ranks did not change, and everything outside of the factored layers, continue from the
        fine-tuned values of the previous round. If False, each round starts from the original's weights.
    one_shot : bool
        Whether all layers are factored before the fine-tuning. If False, the model is fine-tuned after each layer, as
        other methods do.
    """

    name = "similarity"
    needs = frozenset({"calibration", "metric", "recipe"})
    handles = frozenset({ACCURACY})
    default_methods = DEFAULT_PAIR

    objective: Objective = "params"
    coverage: float = 0.9
    coverage_of: Coverage = "layers"
    drop: float = 0.015
    threshold: float = 0.92
    branched_threshold: float = 0.96
    thresholds: Mapping[str, float] = field(default_factory=dict)
    step_size: float = 0.05
    max_sol: int = 3
    samples: int = 1000
    carry: bool = True
    one_shot: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("objective", get_args(Objective)), ("coverage_of", get_args(Coverage))):
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, str(getattr(self, name)), choices)
        require(is_number(self.coverage) and 0 < self.coverage <= 1, "coverage", self.coverage, "in (0, 1]")
        require(is_number(self.drop) and 0 <= self.drop < 1, "drop", self.drop, "in [0, 1)")
        require(isinstance(self.thresholds, Mapping), "thresholds", self.thresholds, "a mapping of layer names")
        levels = {"threshold": self.threshold, "branched_threshold": self.branched_threshold, **self.thresholds}
        for name, level in levels.items():
            require(is_number(level) and -1 <= level <= 1, name, level, "a cosine similarity in [-1, 1]")
        require(
            is_number(self.step_size) and 0.01 <= self.step_size <= 0.5, "step_size", self.step_size, "in [0.01, 0.5]"
        )
        for name in ("max_sol", "samples"):
            value = getattr(self, name)
            require(is_integer(value) and value >= 1, name, value, "an integer >= 1")
        for name in ("carry", "one_shot"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")

    def plan(self, problem: Problem) -> Plan:
        """Return the plan of the smallest model within the drop, with its fine-tuned weights kept in the workbench.

        Raises
        ------
        InfeasibleBudget
            If the other bounds cannot be met, or not together with the drop.
        ConfigError
            If the workbench is missing.
        NoMatchingLayer
            If there is no layer of a name in `thresholds`.
        """
        if problem.workbench is None:
            raise ConfigError("strategy 'similarity' trains and measures models. Use rankfold.compress.")
        names = [layer.name for layer in problem.inventory]
        for name in self.thresholds:
            if name not in names:
                raise NoMatchingLayer.of("the model of strategy 'similarity' (option thresholds)", name, names)
        places = problem.workbench.places([layer.name for layer in problem.inventory.compressible])
        targets, reasons = self._targets(problem, set(places))
        pairs = self._pairs(problem, targets)
        if not pairs:
            return self._without_targets(problem, reasons)
        rules = Rules(
            allowed=_allowed(problem, self.drop),
            thresholds={
                layer.name: self.thresholds.get(
                    layer.name, self.branched_threshold if places[layer.name].branched else self.threshold
                )
                for layer in targets
            },
            objective=self.objective,
            samples=self.samples,
            carry=self.carry,
            one_shot=self.one_shot,
        )
        outcomes, failed = self._outcomes(problem, rules, pairs)
        best = min(reversed(outcomes), key=rules.preference)  # the hybrid, if it is as small
        problem.workbench.keep(best.model, rounds=[entry for outcome in outcomes for entry in outcome.log()])
        plan = make_plan(problem, self, best.selection, reasons={**reasons, **best.reasons})
        runs = [outcome.summary() for outcome in outcomes]
        search = {"best": best.label, "drop": best.drop, "runs": runs, **({"failed": failed} if failed else {})}
        return replace(plan, provenance=replace(plan.provenance, search=search))

    def _outcomes(
        self, problem: Problem, rules: Rules, pairs: Mapping[str, dict[str, list[Candidate]]]
    ) -> tuple[list[Outcome], list[str]]:
        """Return the results of all pairs and of their hybrid, and the names of those that cannot meet the budget."""
        outcomes: list[Outcome] = []
        failed: list[str] = []
        for label, ladders in pairs.items():
            try:
                outcomes.append(Raising(problem, self, rules, ladders, label=label).run())
            except InfeasibleBudget:
                failed.append(label)
                if len(failed) == len(pairs):
                    raise
        if len(outcomes) > 1:
            try:
                outcomes.append(self._hybrid(problem, rules, pairs, outcomes))
            except InfeasibleBudget:
                failed.append("hybrid")
        return outcomes, failed

    def _without_targets(self, problem: Problem, reasons: Mapping[str, str]) -> Plan:
        """Return the plan if no layer can be factored; raise `InfeasibleBudget` if it does not meet the budget."""
        budget, total = problem.budget, problem.inventory.total
        cost = problem.pricing.total_with({name: candidate.cost for name, candidate in problem.fixed.items()})
        if budget is not None and budget.exceeded(cost, total):
            raise InfeasibleBudget(
                f"strategy 'similarity' cannot meet budget {str(budget)!r}: no target layer has a setting that is "
                f"smaller. {advice(problem)}",
                budget.rows(total, cost.get),
            )
        return make_plan(problem, self, {}, reasons=reasons)

    def _targets(self, problem: Problem, seen: set[str]) -> tuple[list[LayerInfo], dict[str, str]]:
        """Return the target layers (section 5.1), and why the others are kept."""
        reasons = {layer.name: layer.skip for layer in problem.inventory if layer.skip is not None}
        layers = [layer for layer in problem.inventory.compressible if layer.name not in problem.fixed]
        idle = {layer.name: "the example input does not reach it" for layer in layers if not layer.calls}
        idle |= {
            layer.name: "the first calibration samples do not reach it" for layer in layers if layer.name not in seen
        }
        amounts = {layer.name: problem.inventory.costs[layer.name].get(self.objective) for layer in layers}
        layers = sorted((layer for layer in layers if layer.name not in idle), key=lambda layer: -amounts[layer.name])
        count = max(1, math.floor(self.coverage * len(layers) + 1e-9))
        if self.coverage_of == "objective":
            wanted, held = (
                self.coverage * sum(amounts[layer.name] for layer in layers),
                accumulate(amounts[layer.name] for layer in layers),
            )
            count = 1 + sum(total < wanted * (1 - 1e-9) for total in held)
        small = {layer.name: f"one of the smallest layers (coverage={self.coverage})" for layer in layers[count:]}
        return layers[:count], {**reasons, **idle, **small}

    def _pairs(self, problem: Problem, targets: list[LayerInfo]) -> dict[str, dict[str, list[Candidate]]]:
        """Return the settings of each layer that has some, by pair of factorizations; equal pairs are merged."""
        given = {name: methods.get(name, problem.options.get(name)) for name in problem.methods}
        matrix = [name for name, method in given.items() if method.supports(layer_of(_LINEAR)) is None]
        kernels = [name for name in given if name not in matrix]
        settings = Ladders(problem=problem, objective=self.objective, step_size=self.step_size, max_sol=self.max_sol)
        pairs: dict[tuple[tuple[str, str], ...], str] = {}
        for kernel, flat in product(kernels or [None], matrix or [None]):
            first = {True: (flat, kernel), False: (kernel, flat)}
            chosen = {
                layer.name: next((m for m in first[_is_matrix(layer)] if m and given[m].supports(layer) is None), "")
                for layer in targets
            }
            pairs.setdefault(tuple(chosen.items()), "+".join(m for m in (kernel, flat) if m))
        ladders = {
            label: {name: settings.of(problem.inventory.layer(name), method) for name, method in choices if method}
            for choices, label in pairs.items()
        }
        used = {label: {name: rungs for name, rungs in each.items() if rungs} for label, each in ladders.items()}
        return {label: each for label, each in used.items() if each}

    def _hybrid(
        self, problem: Problem, rules: Rules, pairs: Mapping[str, dict[str, list[Candidate]]], runs: list[Outcome]
    ) -> Outcome:
        """Combine the cheapest setting of each layer among the results of the pairs (section 5.2)."""
        dense = problem.inventory.costs

        def amount(run: Outcome, name: str) -> int:
            candidate = run.selection.get(name)
            return (dense[name] if candidate is None else candidate.cost).get(self.objective)

        names = dict.fromkeys(name for ladders in pairs.values() for name in ladders)
        source = {name: min(runs, key=lambda run: amount(run, name)) for name in names}
        ladders = {name: pairs[run.label][name] for name, run in source.items() if name in pairs[run.label]}
        start = {name: source[name].positions[name] for name in ladders}
        best = min(runs, key=lambda run: run.amount)
        return Raising(problem, self, rules, ladders, label="hybrid", retrain=True).run(
            positions=start, like=best.model, limit=best.amount
        )


_LINEAR = "linear:64x64"
"""A layer that tells factorizations of matrices from those of kernels."""


def _is_matrix(layer: LayerInfo) -> bool:
    return layer.kernel_numel == 1


def _allowed(problem: Problem, default: float) -> float:
    """Return the largest allowed drop."""
    bounds = () if problem.budget is None else problem.budget.get(ACCURACY)
    return min((bound.value for bound in bounds), default=default)


registry.register(Similarity, summary="ranks raised until the feature maps of fine-tuned models agree")
