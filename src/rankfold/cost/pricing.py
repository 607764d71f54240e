"""Prices of layers, candidates and plans at a data type, gauged or not, in every resource."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Protocol

from rankfold import methods
from rankfold._config import require
from rankfold.cost.count import blueprint_cost, gauged_cost
from rankfold.cost.narrowing import narrowed_inventory
from rankfold.cost.ram import layer_ram
from rankfold.errors import BudgetError, ConfigError, UnknownNameError
from rankfold.records import (
    ActivationProfile,
    Blueprint,
    Budget,
    Candidate,
    Choice,
    Cost,
    Inventory,
    LayerInfo,
    Narrowing,
    PeakRAM,
    Plan,
    Ranks,
    find_resource,
    gauge_blueprint,
    is_inside,
    replaced,
)
from rankfold.records.dense import dense_cost
from rankfold.records.deploy import check_deploy_dtype, outside_bytes

MOST_AMOUNT = 2**53
"""The largest amount of a registered resource in one layer: sums of it are exact in the solver."""


class LayerTimes(Protocol):
    """Measured times of a model's layers, in nanoseconds; `rankfold.timing.LayerTable` measures them.

    Attributes
    ----------
    whole : int
        The dense model's time.
    """

    whole: int

    def measure(self, layer: LayerInfo, blueprints: Sequence[Blueprint]) -> None:
        """Measure what the times of these blueprints are read off, alternately with the dense layer."""
        ...

    def ns(self, layer: LayerInfo, blueprint: Blueprint | None) -> int:
        """Return the time of a factored layer, or of the dense layer for None."""
        ...


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of a model's layers, their candidates and whole plans. Create one with `Pricing.of`.

    Parameters
    ----------
    inventory : Inventory
        The model's layers, with dense costs at the deployment data type.
    deploy_dtype : str or None
        Data type of the weights on the device: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"``. None is the
        model's own.
    gauge : bool
        Whether factors are gauged wherever that is beneficial (`rankfold.cost.gauged_cost`).
    resources : tuple of str
        Names of the priced resources with a `Resource.layer`, and of those of parts, such as ``"params(encoder.*)"``.
    parts : mapping of str to frozenset of str
        Paths of the modules in each of these parts, by pattern.
    profile : ActivationProfile or None
        Activation memory of the dense model at the deployment data type, if candidates are priced in peak RAM.
    times : LayerTimes or None
        Measured times, if a measured resource is priced.
    never_slower : bool
        Whether candidates must be faster than their layer (`is_useful`), if time is priced.
    """

    inventory: Inventory
    deploy_dtype: str | None = None
    gauge: bool = False
    resources: tuple[str, ...] = ()
    parts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    profile: ActivationProfile | None = None
    times: LayerTimes | None = None
    never_slower: bool = False

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        *,
        deploy_dtype: str | None = None,
        gauge: bool = False,
        resources: Iterable[str] = (),
        profile: ActivationProfile | None = None,
        times: LayerTimes | None = None,
        never_slower: bool = False,
    ) -> Pricing:
        """Return the prices of a model with an inventory from `rankfold.inspect`.

        `resources` names the resources to be bounded or reported; only those with a `Resource.layer`, those of parts
        and measured ones are required. Measured resources need `times`; without, they are not priced.

        Raises
        ------
        UnknownNameError
            If the data type or a resource is unknown.
        NoMatchingLayer
            If a part matches no module.
        BudgetError
            If a part has nothing of its resource.
        ConfigError
            If `gauge` is not a boolean.

        Examples
        --------
        >>> import torch
        >>> from rankfold.inventory import inspect
        >>> inventory = inspect(torch.nn.Linear(64, 10), torch.zeros(1, 64))
        >>> inventory.total.weight_bytes, Pricing.of(inventory, deploy_dtype="int8").inventory.total.weight_bytes
        (2600, 720)
        """
        check_deploy_dtype(deploy_dtype)
        require(isinstance(gauge, bool), "gauge", gauge, "true or false")
        named = [find_resource(name) for name in resources]
        measured = times is not None
        further = {
            one.name: one for one in named
            if one.layer is not None or one.part is not None or (one.kind == "measured" and measured)
        }  # fmt: skip
        parts = {one.part: inventory.paths_of(one.part) for one in further.values() if one.part is not None}
        pricing = cls(inventory, deploy_dtype, gauge, tuple(further), parts, profile, times, never_slower)
        pricing = replace(pricing, inventory=pricing._priced(inventory))
        for one in further.values():
            if one.part is not None and not one.of(pricing.inventory.total):
                raise BudgetError(
                    f"{one.name} cannot be bounded: the modules that match {one.part!r} have no {one.title}. Bound "
                    "another part or resource."
                )
        return pricing

    @classmethod
    def of_plan(cls, inventory: Inventory, plan: Plan) -> Pricing:
        """Return the prices of a plan's model, at the plan's data type and in the resources of its budget.

        A budget that cannot be parsed, such as one on a resource that is not registered here, is ignored.
        """
        provenance = plan.provenance
        try:
            resources = Budget.parse(provenance.budget).resources if provenance.budget else ()
        except (BudgetError, UnknownNameError):
            resources = ()
        return cls.of(inventory, deploy_dtype=provenance.deploy_dtype, resources=resources)

    def _priced(self, inventory: Inventory) -> Inventory:
        """Return an inventory with the bytes of the deployment data type, the further resources and the parts."""
        priced = self._at_dtype(inventory)
        if not self.resources:
            return priced
        costs = {layer.name: self._with_more(priced.costs[layer.name], layer, None) for layer in inventory}
        more = {**sum(costs.values(), start=Cost()).more, **self._counted(inventory)}
        return replace(priced, costs=costs, total=replace(priced.total, more=more))

    def _at_dtype(self, inventory: Inventory) -> Inventory:
        if self.deploy_dtype is None:
            return inventory
        costs = {layer.name: dense_cost(layer, deploy_dtype=self.deploy_dtype) for layer in inventory}
        outside = sum(outside_bytes(n, dtype, self.deploy_dtype) for dtype, n in inventory.outside.items())
        size = sum(cost.weight_bytes for cost in costs.values()) + outside
        return replace(inventory, costs=costs, total=replace(inventory.total, weight_bytes=size))

    def _counted(self, inventory: Inventory) -> dict[str, int]:
        """Return the amounts that are not sums over the layers: those of parts, and measured ones."""
        whole = {} if self.times is None else dict.fromkeys(self._measured, self.times.whole)
        totals = {part: self._at_dtype(inventory.within(paths)).total for part, paths in self.parts.items()}
        named = [find_resource(name) for name in self.resources]
        return whole | {
            one.name: one.amount(totals[one.part]) for one in named if one.part is not None and one.amount is not None
        }

    @property
    def _measured(self) -> list[str]:
        return [name for name in self.resources if find_resource(name).kind == "measured"]

    def _with_more(self, cost: Cost, layer: LayerInfo, blueprint: Blueprint | None) -> Cost:
        """Return the cost of a layer with the amounts of the further resources and of the parts."""
        amounts: dict[str, int] = {}
        for one in map(find_resource, self.resources):
            if one.part is not None and not is_inside(layer.paths, self.parts[one.part]):
                amount = 0
            elif one.amount is not None:
                amount = one.amount(cost)
            elif one.kind == "measured":
                assert self.times is not None
                amount = self.times.ns(layer, blueprint) if layer.skip is None else 0
            else:
                assert one.layer is not None
                amount = one.layer(layer, blueprint)
            good = isinstance(amount, Integral) and 0 <= amount <= MOST_AMOUNT
            require(good, f"the {one.name} of {layer.title}", amount, "an integer from 0 to 2^53")
            amounts[one.name] = int(amount)
        return replace(cost, more=amounts)

    def blueprint_cost(self, layer: LayerInfo, blueprint: Blueprint) -> Cost:
        """Return the cost of a factored layer."""
        cost = blueprint_cost(blueprint, layer, deploy_dtype=self.deploy_dtype)
        return self._with_more(cost, layer, blueprint) if self.resources else cost

    def candidate(
        self,
        layer: LayerInfo,
        method: methods.Method,
        ranks: Ranks,
        *,
        options: Mapping[str, Any] | None = None,
        gauge: bool = False,
    ) -> Candidate:
        """Return a candidate of a layer, with error 1 until the error is computed.

        `options` are those of the method. `gauge` gauges the factors even if that is not beneficial.
        """
        blueprint = method.blueprint(layer, ranks)
        cost, gauged = gauged_cost(blueprint, layer, gauge=self.gauge, deploy_dtype=self.deploy_dtype)
        gauged, ram = gauged or gauge, None
        if gauge or self.resources or self.profile is not None:
            blueprint = gauge_blueprint(blueprint) if gauged else blueprint
            cost = self.blueprint_cost(layer, blueprint)
            ram = None if self.profile is None else layer_ram(self.profile, layer, blueprint)
        return Candidate(
            layer=layer.name, method=method.name, ranks=ranks, cost=cost, error=1.0, options=options or {},
            gauge=gauged, ram=ram,
        )  # fmt: skip

    def candidates(
        self, layer: LayerInfo, method: methods.Method, grid: Iterable[Ranks], options: Mapping[str, Any] | None = None
    ) -> list[Candidate]:
        """Return a layer's candidates that are smaller than the layer (`is_smaller`); their times are measured at once.

        The arguments are those of `candidate`, with a grid of ranks.
        """
        counted = replace(self, resources=(), times=None) if self._measured else self
        priced = [counted.candidate(layer, method, ranks, options=options) for ranks in grid]
        smaller = [candidate for candidate in priced if self.is_smaller(candidate)]
        if self.times is None or not self._measured:
            return smaller
        self.times.measure(layer, [methods.chosen_blueprint(layer, Choice.of(c)) for c in smaller])
        return [self.candidate(layer, method, c.ranks, options=options) for c in smaller]

    def is_smaller(self, candidate: Candidate) -> bool:
        """Return whether a candidate has fewer parameters and no more MACs than its layer."""
        dense = self.inventory.costs[candidate.layer]
        return candidate.cost.params < dense.params and candidate.cost.macs <= dense.macs

    def is_faster(self, candidate: Candidate) -> bool:
        """Return whether a candidate takes less of every measured resource, if its layer takes any.

        A layer that the example input does not reach takes none.
        """
        dense = self.inventory.costs[candidate.layer]
        return all(candidate.cost.get(name) < dense.get(name) for name in self._measured if dense.get(name))

    def is_useful(self, candidate: Candidate) -> bool:
        """Return whether a candidate is smaller than its layer and, with `never_slower`, faster."""
        return self.is_smaller(candidate) and (not self.never_slower or self.is_faster(candidate))

    @property
    def gain(self) -> str:
        """How useful candidates differ from their layers, in words."""
        return "smaller and faster" if self.never_slower else "smaller"

    def narrowed(self, narrowing: Narrowing) -> Pricing:
        """Return the prices of the model without some channels; candidates are not priced in peak RAM.

        If time is priced, narrow layers are measured. Other modules are taken to be as slow as before.
        """
        if not narrowing:
            return self
        inventory = self._priced(narrowed_inventory(self.inventory, narrowing))
        times = {
            name: replaced(self.inventory.total, self.inventory.costs, inventory.costs).get(name)
            for name in self._measured
        }
        total = replace(inventory.total, more={**inventory.total.more, **times})
        return replace(self, inventory=replace(inventory, total=total), profile=None)

    def layer_costs(self, plan: Plan) -> dict[str, Cost]:
        """Return the costs of the layers that a plan factors or narrows, by name."""
        here = self.narrowed(plan.narrowing)
        costs = {name: here.choice_cost(name, choice) for name, choice in plan.factored.items()}
        rest = (layer.name for layer in here.inventory if layer.name not in costs)
        return costs | {n: here.inventory.costs[n] for n in rest if here.inventory.costs[n] != self.inventory.costs[n]}

    def choice_cost(self, name: str, choice: Choice) -> Cost:
        """Return the cost of a layer after a choice has been applied."""
        layer = self.inventory.layer(name)
        return self.blueprint_cost(layer, methods.chosen_blueprint(layer, choice))

    def total_with(self, layers: Mapping[str, Cost]) -> Cost:
        """Return the cost of the whole model with the costs of some layers replaced."""
        return replaced(self.inventory.total, self.inventory.costs, layers)

    def plan_cost(self, plan: Plan) -> Cost:
        """Return the cost of the whole model after a plan has been applied."""
        here = self.narrowed(plan.narrowing)
        return here.total_with({name: here.choice_cost(name, choice) for name, choice in plan.factored.items()})

    def peak_ram(self, plan: Plan) -> int:
        """Return the peak activation memory under a plan, in bytes; requires a profile."""
        assert self.profile is not None
        profile, factored = self.profile, plan.factored

        def ram(name: str) -> int:
            layer, choice = self.inventory.layer(name), factored.get(name)
            return layer_ram(profile, layer, None if choice is None else methods.chosen_blueprint(layer, choice))

        return max([profile.floor, *map(ram, profile.layers)])

    def peaks(self, layers: Iterable[str], fixed: Iterable[Candidate]) -> PeakRAM | None:
        """Return the peak RAM without the candidates of some layers; None without a profile."""
        if self.profile is None:
            return None
        dense = {name: layer_ram(self.profile, self.inventory.layer(name)) for name in self.profile.layers}
        kept = {name: dense.get(name, 0) for name in layers}
        decided = {candidate.layer: candidate.ram or 0 for candidate in fixed}
        others = [size for name, size in (dense | decided).items() if name not in kept]
        return PeakRAM(dense=self.profile.peak, floor=max([self.profile.floor, *others]), kept=kept)

    def built(self, inventory: Inventory, plan: Plan) -> Inventory:
        """Return the inventory of a compressed model at the deployment data type.

        Costs are counted independently of the plan, except for resources with a `Resource.layer`.
        """
        own = self._at_dtype(inventory)
        if not self.resources:
            return own
        return replace(own, total=replace(own.total, more={**self.plan_cost(plan).more, **self._counted(inventory)}))

    def ranks_within(
        self,
        layer: LayerInfo,
        method: methods.Method,
        share: float,
        error: Callable[[Ranks], float],
        *,
        multiple: int = 1,
        points: int = 64,
        gauge: bool = False,
    ) -> Ranks:
        """Return the ranks of least error on the method's grid that keep at most a share of a layer's parameters.

        `error` returns the error of ranks, as `Prepared.error` does; for `gauge`, see `candidate`. Raises `ConfigError`
        if the share is not in (0, 1], or too small for any ranks.
        """
        require(0 < share <= 1, f"the share of parameters of {layer.title}", share, "in (0, 1]")
        dense = dense_cost(layer).params
        settings = method.rank_grid(layer, multiple=multiple, points=points)
        grid = [self.candidate(layer, method, ranks, gauge=gauge) for ranks in settings]
        fitting = [c.ranks for c in grid if c.cost.params <= share * dense]
        if not fitting:
            least = min(c.cost.params for c in grid) / dense
            raise ConfigError(
                f"no ranks of {method.name!r} fit {layer.title} in {100 * share:.3g} % of its parameters; the smallest "
                f"possible share is {100 * least:.3g} %. Use a larger share or another method."
            )
        return min(fitting, key=lambda ranks: (error(ranks), ranks))
