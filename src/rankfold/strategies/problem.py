"""What a strategy is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankfold import methods
from rankfold.candidates import Estimator
from rankfold.cost import Pricing
from rankfold.factor.moments import Moments
from rankfold.methods import Method, Prepared
from rankfold.records import Budget, Candidate, CandidateTable, ChannelGroups, Inventory, LayerInfo, Ranks
from rankfold.strategies.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The input of a strategy.

    Parameters
    ----------
    pricing : Pricing
        Prices of the model's layers, their candidates and plans.
    table : callable
        Returns the candidate table, which is computed on the first call.
    weight : callable
        ``weight(layer_name)`` returns the layer's weight in torch's layout, detached.
    budget : Budget or None
        Bounds on the plan.
    seed : int
        Random seed.
    methods : tuple of str
        The available methods.
    options : mapping of str to mapping
        Options of methods, by method name.
    rank_multiple : int
        Ranks are multiples of this number.
    block : int
        Number of channels in which the target computes. Widths of narrow layers are multiples of it.
    fixed : mapping of str to Candidate
        Overrides by layer name, which the strategy must not change.
    estimator : Estimator or None
        Predicts the loss of candidates.
    workbench : Workbench or None
        For strategies that loop: applies plans; trains, evaluates and compares models.
    find_groups : callable
        Returns the channel groups (`groups`).
    """

    pricing: Pricing
    table: Callable[[], CandidateTable]
    weight: Callable[[str], Any]
    budget: Budget | None = None
    seed: int = 0
    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rank_multiple: int = 1
    block: int = 1
    fixed: Mapping[str, Candidate] = field(default_factory=dict)
    estimator: Estimator | None = None
    workbench: Workbench | None = None
    find_groups: Callable[[], ChannelGroups] = ChannelGroups

    def candidate(
        self, layer: LayerInfo, method: str, ranks: Ranks, options: Mapping[str, Any] | None = None
    ) -> Candidate:
        """Return one setting of a layer with its cost and predicted error; `options` are by default the problem's."""
        options = self.options.get(method, {}) if options is None else options
        factorization = methods.get(method, options)
        candidate = self.pricing.candidate(layer, factorization, ranks, options=options)
        return replace(candidate, error=self.prepared(layer, factorization).error(ranks))

    def prepared(self, layer: LayerInfo, method: Method) -> Prepared:
        """Return a layer's factors and their errors at all ranks, on the calibration data if there is any."""
        return methods.prepare(method, self.weight(layer.name), layer, self.moments(layer.name))

    def moments(self, layer: str) -> Moments | None:
        """Return the second moments of a layer's input; None without calibration data."""
        return None if self.estimator is None else (self.estimator.moments or {}).get(layer)

    @property
    def groups(self) -> ChannelGroups:
        """The channels that can be removed; the model is traced on first use."""
        return self.find_groups()

    @property
    def inventory(self) -> Inventory:
        """The model's layers."""
        return self.pricing.inventory
