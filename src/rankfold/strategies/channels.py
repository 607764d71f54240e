"""What strategies that narrow a model share: which channels go first, and how many of each group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankfold import criteria
from rankfold._config import is_number, require, spelled
from rankfold.criteria import Criterion, Filters
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, NoMatchingLayer
from rankfold.records import PEAK, ChannelGroup, Cost, Narrowing
from rankfold.strategies.contract import obstacles
from rankfold.strategies.problem import Problem

STEPS = 30
"""Bisections of the share of channels; more than the width of any layer can tell apart."""

Shares = float | Mapping[str, float]
"""Shares of channels to remove: one for all groups, or by layer name or shell pattern."""


def check_channel_options(ratio: Any, criterion: str, most: float) -> None:
    """Raise for options, of those that strategies which remove channels share, that are out of range or unknown."""
    wanted = "a share of channels, 0 <= ratio < 1, or a mapping of layer names to shares"
    named = ratio if isinstance(ratio, Mapping) else {"*": ratio}
    require(all(isinstance(pattern, str) for pattern in named), "ratio", ratio, wanted)
    require(all(is_number(share) and 0 <= share < 1 for share in named.values()), "ratio", ratio, wanted)
    criteria.get(criterion)
    require(is_number(most) and 0 < most < 1, "most", most, "a number between 0 and 1")


def kept_width(width: int, share: float) -> int:
    """Return how many channels are kept if a share is removed: the number is rounded down, as the authors of NORTON do.

    The margin keeps rounding from removing one more, such as of 10 channels with 1 - 0.9 = 0.0999....
    """
    return math.floor(width * (1 - share) + 1e-9)


def bounded_layers(problem: Problem) -> set[str]:
    """Return the names of the layers that count in a bound; all of them without a budget."""
    bounds = [] if problem.budget is None else problem.budget.additive
    costs = problem.inventory.costs
    return {name for name, cost in costs.items() if not bounds or any(cost.get(bound.resource) for bound in bounds)}


@dataclass(frozen=True)
class Channels:
    """The channel groups of a problem, with the order in which a criterion removes their channels.

    Groups with a layer that the user excluded or fixed are left whole.

    Parameters
    ----------
    problem : Problem
        The problem.
    criterion : Criterion
        Scores the filters of each layer.
    rank : int
        Rank of the CP decompositions that the criterion may compare.
    ranks : mapping of str to int
        Ranks by layer name that differ from `rank`.
    """

    problem: Problem
    criterion: Criterion
    rank: int
    ranks: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups that may be narrowed."""
        problem = self.problem
        kept = {layer.name for layer in problem.inventory if layer.left_out} | set(problem.fixed)
        return tuple(group for group in problem.groups if not any(axis.name in kept for axis in group.axes))

    @cached_property
    def orders(self) -> dict[str, list[int]]:
        """The channels of each group by its name, the least important first."""
        return {group.name: self._scores(group).argsort(stable=True).tolist() for group in self.groups}

    def narrowing(self, shares: Mapping[str, float]) -> Narrowing:
        """Return the narrowing that removes these shares of the groups, by group name, but never all channels.

        Widths are rounded up to whole blocks of the target (`Problem.block`), which take no more time.
        """
        removed: dict[str, list[int]] = {}
        for group in self.groups:
            if shares.get(group.name):
                kept = max(1, kept_width(group.width, shares[group.name]))
                kept = -(-kept // self.problem.block) * self.problem.block
                removed[group.name] = self.orders[group.name][: max(0, group.width - kept)]
        return self.problem.groups.narrowing(removed)

    def shares(self, ratio: Shares) -> dict[str, float]:
        """Return the share of each group by its name, from an option such as `Prune.ratio`.

        Raises
        ------
        NoMatchingLayer
            If a pattern matches no layer.
        ConfigError
            If a group of a named layer would lose all its channels, a pattern only matches layers that cannot be
            narrowed, or layers of one group have different shares.
        """
        if not isinstance(ratio, Mapping):
            return {group.name: ratio for group in self._bounded()}
        named = self._named(ratio)
        shares: dict[str, float] = {}
        for group in self.groups:
            mine = {axis.name: named[axis.name] for axis in group.on("outputs") if axis.name in named}
            if len(set(mine.values())) > 1:
                one, other = min(mine, key=lambda name: mine[name]), max(mine, key=lambda name: mine[name])
                raise ConfigError(
                    f"layers {one!r} and {other!r} share their channels, so they need the same ratio. "
                    f"Got {mine[one]} and {mine[other]}."
                )
            shares[group.name] = self._checked(group, next(iter(mine.values()), 0.0))
        return shares

    def none(self) -> str:
        """Return why no group may be narrowed, with the reason for each layer."""
        layers, fixed = list(self.problem.inventory), self.problem.groups.fixed
        reasons = [
            f"{layer.name or '(the model)'}: "
            f"{layer.skip or fixed.get(layer.name) or 'a layer that it is coupled with is fixed'}"
            for layer in layers[:5]
        ]
        reasons += [f"and {len(layers) - 5} more"] if len(layers) > 5 else []
        return f"no channels can be removed ({'; '.join(reasons)})."

    def _bounded(self) -> list[ChannelGroup]:
        """Return the groups that count in a bound; all of them without a budget."""
        counted = bounded_layers(self.problem)
        return [group for group in self.groups if any(axis.name in counted for axis in group.axes)]

    def _named(self, ratio: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each layer by the first pattern that matches its name."""
        inside = [axis.name for group in self.groups for axis in group.on("outputs")]
        for pattern in ratio:
            if not any(fnmatchcase(name, pattern) for name in inside):
                self._refuse(pattern)
        patterns = {name: next((p for p in ratio if fnmatchcase(name, p)), None) for name in inside}
        return {name: ratio[pattern] for name, pattern in patterns.items() if pattern is not None}

    def _checked(self, group: ChannelGroup, share: float) -> float:
        if kept_width(group.width, share) < 1:
            raise ConfigError(
                f"a ratio of {share} would remove all {group.width} channels of layer {group.name!r}. "
                f"Use at most {(group.width - 1) / group.width:.4g}, or a smaller ratio for this layer."
            )
        return share

    def _refuse(self, pattern: str) -> None:
        """Raise an error about a pattern that no group has."""
        names = [layer.name for layer in self.problem.inventory if fnmatchcase(layer.name, pattern)]
        if not names:
            raise NoMatchingLayer.of("the model", pattern, [layer.name for layer in self.problem.inventory])
        layer = self.problem.inventory.layer(names[0])
        reason = layer.skip or self.problem.groups.fixed.get(layer.name) or "a layer that it is coupled with is fixed"
        raise ConfigError(f"layer {layer.name!r} cannot be narrowed: {reason}. Leave it out of the ratios.")

    def _scores(self, group: ChannelGroup) -> Tensor:
        """Return the score of each channel: the mean over the layers that compute it, each layer with mean 1.

        Depthwise convolutions compute nothing new, so they only count if there is no other layer.
        """
        computing = group.on("outputs")
        mixing = [axis for axis in computing if not self.problem.inventory.layer(axis.name).depthwise]
        total = torch.zeros(group.width, dtype=torch.float64)
        for axis in mixing or computing:
            scores = self._of_layer(axis.name)
            mine = torch.stack([scores[list(axis.at(channel))].mean() for channel in range(group.width)])
            total += mine / mine.mean().clamp_min(torch.finfo(mine.dtype).tiny)
        return total

    def _of_layer(self, name: str) -> Tensor:
        known = self._scored
        if name not in known:
            layer = self.problem.inventory.layer(name)
            # Layers of equal width need different random orders.
            digest = hashlib.sha256(f"{self.problem.seed} {layer.name}".encode()).digest()
            seed, rank = int.from_bytes(digest[:6], "big"), self.ranks.get(name, self.rank)
            filters = Filters(self.problem.weight(layer.name), layer, rank=rank, seed=seed)
            known[name] = self.criterion.scores(filters).cpu()
        return known[name]

    @cached_property
    def _scored(self) -> dict[str, Tensor]:
        return {}


def share_within(channels: Channels, cost: Callable[[Narrowing], Cost], *, strategy: str, most: float) -> float:
    """Return the smallest share of channels, at most `most`, that meets the problem's budget.

    `cost` returns the cost of the model after a narrowing. Raises `InfeasibleBudget` if the largest share exceeds the
    budget, and `BudgetError` for a bound on RAM.
    """
    problem, budget = channels.problem, channels.problem.budget
    assert budget is not None
    if budget.get(PEAK):
        raise BudgetError(f"strategy {strategy!r} cannot bound ram. Bound other resources, or use another strategy.")
    dense = problem.inventory.total

    def costs(level: float) -> Cost:
        return cost(channels.narrowing(channels.shares(most * level)))

    if not budget.exceeded(costs(0.0), dense):
        return 0.0
    if budget.exceeded(least := costs(1.0), dense):
        reach = (
            f", even if it removes {most:.0%} of the channels of every group that can be narrowed. Loosen the budget, "
            f"or raise {spelled('most')}."
        )
        reach = " ".join([reach, *obstacles(problem)])
        if not channels.groups:
            reach = f": {channels.none()} Loosen the budget, or use another strategy."
        raise InfeasibleBudget(
            f"strategy {strategy!r} cannot meet budget {str(budget)!r}{reach}", budget.rows(dense, least.get)
        )
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if budget.exceeded(costs(middle), dense) else (low, middle)
    return most * high
