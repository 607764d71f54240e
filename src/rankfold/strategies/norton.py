"""``norton``: channels are pruned in the space of CP factors, then every convolution is factored filter by filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from rankfold import criteria, methods
from rankfold._config import is_integer, require
from rankfold.candidates.table import FILTERWISE
from rankfold.errors import InfeasibleBudget, NoMatchingLayer
from rankfold.inventory.narrowing import lost_energy, refitted
from rankfold.records import Candidate, Cost, LayerInfo, Narrowing, Plan
from rankfold.strategies.channels import Channels, bounded_layers, check_channel_options, share_within
from rankfold.strategies.contract import Strategy, make_plan, registry
from rankfold.strategies.problem import Problem

RANK = 6
"""Rank without a budget: the default of the authors' public code."""
RANKS = range(1, 9)
"""Ranks that are tried to meet a budget: those of the authors' ablation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norton(Strategy):
    """Filter pruning and filter-wise CP decomposition (Pham, Zniyed & Nguyen 2025).

    The least important channels are removed, everywhere they are coupled; with criterion ``pabs``, those whose filters
    are the most redundant in the space of CP factors. Every remaining filter of every convolution with a kernel is then
    decomposed, unless the layer would not become smaller. Rank 6 is the authors' default, ratio 0.4 is from their
    middle setting.

    Parameters
    ----------
    ratio : float or mapping of str to float
        Share of the channels to remove from each group of coupled layers, rounded up to whole channels; at least one
        channel is kept. A mapping gives shares by layer name or shell pattern, of which the first match applies; other
        layers keep their channels. With a budget, one share is used, the smallest that meets the budget; it is recorded
        in the plan. If the budget only bounds parts of the model, groups outside of them keep their channels.
    rank : int, mapping of str to int, or None
        Rank of every filter, by layer name or shell pattern in a mapping; layers that match no pattern stay dense. It
        is lowered to the largest useful rank of a layer. None is rank 6; with a budget, it is the rank in 1..8 whose
        plan has the least relative squared error (with calibration data, of the outputs), summed over the layers;
        pruned weights count as lost.
    criterion : str
        Name of the criterion that selects the channels (`rankfold.criteria`). The paper's is ``"pabs"``; the default is
        the most accurate one that was measured (`benchmarks/criteria.py`).
    most : float
        Largest share that a budget removes from a group.
    """

    name = "norton"
    narrows = True
    default_methods = possible_methods = (FILTERWISE,)

    ratio: Any = 0.4
    rank: Any = None
    criterion: str = "l2"
    most: float = 0.9

    def __post_init__(self) -> None:
        check_channel_options(self.ratio, self.criterion, self.most)
        ranks = self.rank if isinstance(self.rank, Mapping) else {"*": RANK if self.rank is None else self.rank}
        good = all(isinstance(name, str) and is_integer(rank) and rank >= 1 for name, rank in ranks.items())
        require(good, "rank", self.rank, "an integer >= 1, a mapping of layer names to such integers, or None")

    def plan(self, problem: Problem) -> Plan:
        """Return a plan with narrow, factored layers."""
        if problem.budget is None:
            return _Search(self, problem, RANK if self.rank is None else self.rank).plan(self.ratio)
        if self.rank is not None:
            search = _Search(self, problem, self.rank)
            return search.plan(search.share())
        found: list[tuple[float, float, _Search]] = []
        first = Channels(problem, criteria.get(self.criterion), 1)  # good enough to compare ranks
        for rank in reversed(RANKS):  # the lowest one last, which can reach the smallest budget
            search = _Search(self, problem, rank, channels=first)
            try:
                share = search.share()
            except InfeasibleBudget:
                if rank == RANKS[0] and not found:
                    raise
            else:
                found.append((search.loss(share), share, search))
        _, share, best = min(found, key=lambda one: one[0])
        return best.plan(share)


class _Search:
    """Plans of one rank with any ratio."""

    def __init__(
        self, config: Norton, problem: Problem, rank: int | Mapping[str, int], *, channels: Channels | None = None
    ) -> None:
        self._config, self._problem, self._rank = config, problem, rank
        self._method = methods.get(FILTERWISE, problem.options.get(FILTERWISE, {}))
        self._ranks = self._layer_ranks()
        lowest = min(self._ranks.values(), default=1)
        self._own = Channels(problem, criteria.get(config.criterion), lowest, ranks=self._ranks)
        self._channels = channels or self._own

    def share(self) -> float:
        """Return the smallest share of channels that meets the budget."""
        config = self._config
        return share_within(self._channels, self._cost, strategy=config.name, most=config.most)

    def loss(self, share: float) -> float:
        """Return the relative squared error, summed over the layers; removed weights count as errors.

        The errors of the factors are those of the original filters (of their outputs, with calibration data), which
        saves a decomposition for each ratio.
        """
        problem, narrowing = self._problem, self._channels.narrowing(self._channels.shares(share))
        removed, chosen = narrowing.removed(), self._candidates(narrowing)
        loss = 0.0
        for layer in problem.inventory:
            weight, error = problem.weight(layer.name), 0.0
            if layer.name in chosen:
                error = problem.prepared(layer, self._method).error(chosen[layer.name].ranks)
            loss += lost_energy(weight, layer, removed.get(layer.name, {}), error)
        return loss

    def plan(self, ratio: Any) -> Plan:
        """Return the plan with this ratio."""
        problem, channels = self._problem, self._own
        narrowing = channels.narrowing(channels.shares(ratio))
        removed, narrow = narrowing.removed(), problem.pricing.narrowed(narrowing).inventory
        chosen: dict[str, Candidate] = {}
        for name, candidate in self._candidates(narrowing).items():
            layer, gone = problem.inventory.layer(name), removed.get(name, {})
            weight, moments = refitted(problem.weight(name), layer, gone, problem.moments(name))
            prepared = methods.prepare(self._method, weight, narrow.layer(name), moments)
            chosen[name] = replace(candidate, error=prepared.error(candidate.ranks))
        reasons = {layer.name: self._reason(layer) for layer in problem.inventory}
        config = replace(self._config, ratio=ratio, rank=self._rank)
        return make_plan(problem, config, chosen, reasons=reasons, narrowing=narrowing)

    def _layer_ranks(self) -> dict[str, int]:
        """Return the rank of each layer that can be factored."""
        problem = self._problem
        patterns = self._rank if isinstance(self._rank, Mapping) else {"*": self._rank}
        names = [layer.name for layer in problem.inventory]
        for pattern in patterns:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
                raise NoMatchingLayer.of("the model", pattern, names)
        ranks: dict[str, int] = {}
        counted = bounded_layers(problem)
        for layer in problem.inventory:
            rank = next((rank for pattern, rank in patterns.items() if fnmatchcase(layer.name, pattern)), None)
            can = layer.skip is None and self._method.supports(layer) is None and layer.name not in problem.fixed
            if rank is not None and can and layer.name in counted:
                ranks[layer.name] = rank
        return ranks

    def _candidates(self, narrowing: Narrowing) -> dict[str, Candidate]:
        """Return the factored layers of a narrow model: those that are useful (`Pricing.is_useful`)."""
        pricing = self._problem.pricing.narrowed(narrowing)
        chosen: dict[str, Candidate] = {}
        for name, rank in self._ranks.items():
            layer = pricing.inventory.layer(name)
            if self._method.supports(layer) is not None:  # narrowed to a depthwise convolution
                continue
            ranks = (min(rank, *self._method.max_ranks(layer)),)
            candidate = pricing.candidate(layer, self._method, ranks, options=self._problem.options.get(FILTERWISE))
            if pricing.is_useful(candidate):
                chosen[name] = candidate
        return chosen

    def _cost(self, narrowing: Narrowing) -> Cost:
        fixed = {name: candidate.cost for name, candidate in self._problem.fixed.items()}
        factored = {name: candidate.cost for name, candidate in self._candidates(narrowing).items()}
        return self._problem.pricing.narrowed(narrowing).total_with(fixed | factored)

    def _reason(self, layer: LayerInfo) -> str:
        """Return why a layer is kept if it is not factored."""
        if layer.name in self._ranks:
            return f"it would not become {self._problem.pricing.gain} at rank {self._ranks[layer.name]}"
        bounded = "no rank is given for it" if layer.name in bounded_layers(self._problem) else "no bound counts it"
        return layer.skip or self._method.supports(layer) or bounded


registry.register(Norton, summary="filter pruning in the space of CP factors, then filter-wise CP (NORTON)")
