"""``prune``: whole channels are removed, and no layer is factored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rankfold import criteria
from rankfold._config import is_integer, require
from rankfold.records import Cost, Narrowing, Plan
from rankfold.strategies.channels import Channels, check_channel_options, share_within
from rankfold.strategies.contract import Strategy, make_plan, registry
from rankfold.strategies.problem import Problem

KEPT_DENSE = "only channels are removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune(Strategy):
    """The least important channels are removed, everywhere they are coupled; every layer stays dense.

    Parameters
    ----------
    ratio : float or mapping of str to float
        Share of the channels to remove from each group of coupled layers, rounded up to whole channels; at least one
        channel stays. A mapping gives shares by layer name or shell pattern, of which the first match applies; other
        layers keep their channels. With a budget, one share is used, the smallest that meets the budget; it is recorded
        in the plan. If the budget only bounds parts of the model, groups outside of them keep their channels.
    criterion : str
        Name of the criterion that selects the channels (`rankfold.criteria`). The default is the most accurate one that
        was measured (`benchmarks/criteria.py`).
    rank : int
        Rank of the CP decompositions that the criteria ``pabs``, ``csa`` and ``vbd`` compare.
    most : float
        Largest share that a budget removes from a group.
    """

    name = "prune"
    narrows = True
    possible_methods = ()

    ratio: Any = 0.3
    criterion: str = "l2"
    rank: int = 1
    most: float = 0.9

    def __post_init__(self) -> None:
        check_channel_options(self.ratio, self.criterion, self.most)
        require(is_integer(self.rank) and self.rank >= 1, "rank", self.rank, "an integer >= 1")

    def plan(self, problem: Problem) -> Plan:
        """Return a plan with narrow layers, all of them dense except for fixed ones.

        Raises
        ------
        InfeasibleBudget
            If the budget cannot be met.
        """
        channels = Channels(problem, criteria.get(self.criterion), self.rank)

        def cost(narrowing: Narrowing) -> Cost:
            return problem.pricing.narrowed(narrowing).total_with({n: c.cost for n, c in problem.fixed.items()})

        ratio = self.ratio
        if problem.budget is not None:
            ratio = share_within(channels, cost, strategy=self.name, most=self.most)
        narrowing = channels.narrowing(channels.shares(ratio))
        dense = KEPT_DENSE if channels.groups else channels.none()
        reasons = {layer.name: layer.skip or dense for layer in problem.inventory}
        return make_plan(problem, replace(self, ratio=ratio), {}, reasons=reasons, narrowing=narrowing)


registry.register(Prune, summary="removal of whole channels, without factoring")
