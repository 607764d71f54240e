"""Plan: method and ranks of every layer."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold import strategies
from rankfold._grad_mode import trainable
from rankfold._hashing import state_hash
from rankfold._progress import track
from rankfold._turns import in_turn
from rankfold._version import __version__
from rankfold.api.checks import BudgetLike, check_compressible, check_counted, check_options, reusable
from rankfold.calibration import LayerMoments, collect_moments
from rankfold.candidates import Judge, TableConfig, build_table, plan_ram, resolve_methods, with_ram, within_ram
from rankfold.cost import Pricing, activation_profile
from rankfold.errors import BudgetError, InfeasibleBudget
from rankfold.factor.moments import Moments
from rankfold.inventory import export_graph, inspect, layer_weight
from rankfold.records import (
    PEAK,
    ActivationProfile,
    Budget,
    CandidateTable,
    Choice,
    Inventory,
    Plan,
)
from rankfold.strategies import Problem
from rankfold.strategies.manual import with_overrides

UNREACHED = "no calibration sample reaches it: judged and factored by its weight alone"
UNMEASURED = "no sample that the search looks at reaches it: judged by its own error"
"""Notes on layers of which the data says nothing."""


@in_turn
@trainable
def plan(
    model: nn.Module,
    example_input: Any,
    *,
    budget: BudgetLike | None = None,
    strategy: str = "compressnas",
    config: Mapping[str, Any] | None = None,
    methods: str | Sequence[str] | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Iterable[Any] | None = None,
    data_aware: bool = True,
    include: str | type | Sequence[str | type] | None = None,
    exclude: str | type | Sequence[str | type] | None = None,
    keep_first_last: bool = False,
    overrides: Mapping[str, Any] | None = None,
    rank_multiple: int | None = None,
    gauge: bool = False,
    storage: str | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
) -> Plan:
    """Choose method and ranks of every layer.

    Parameters
    ----------
    model : Module
        A trained model; left untouched.
    example_input : object
        What the model is called with: a tuple is its positional arguments, a dict its keyword arguments, anything else
        the one argument.
    budget : str, mapping, sequence or Budget, optional
        Upper bounds, such as ``"params<=25%"``, ``"params/4"``, ``{"macs": 0.5, "flash": "512KiB"}``. Without one the
        strategy's own default decides.
    strategy : str
        A registered strategy: ``"compressnas"``, or the baselines ``"energy"``, ``"uniform"``, ``"vbmf"``; or
        ``"manual"``.
    config : mapping, optional
        Options of the strategy.
    methods : str or sequence of str, optional
        Factorizations to choose from, or ``"all"``; by default svd, tucker and spatial_svd.
    method_options : mapping of str to mapping, optional
        Options of factorizations, by method name.
    calibration : iterable, optional
        Batches of inputs, labels not needed; with them errors are those of the layers' outputs.
    data_aware : bool
        False collects no second moments: predicted errors and factors are those of the weights. What a search measures
        by running the network it still does; ``config={"proxy": "weight"}`` judges by the weights alone.
    include, exclude : pattern, type or sequence of them, optional
        Layers to consider, by name pattern (``"layer1.*"``, ``"re:..."``) or module type.
    keep_first_last : bool
        Keep the network's first convolution and its last classifier.
    overrides : mapping of str to choice, optional
        Decisions by layer name or pattern, which the strategy leaves alone: ``(method, ranks)``, ``(method, share of
        parameters)`` or None to keep the layer. They count towards the budget.
    rank_multiple : int, optional
        Ranks are multiples of this; by default 8 for a model on an accelerator, else 1.
    gauge : bool
        Gauge factors wherever that wins: the same function with r^2 parameters and multiplications less at a bond of
        rank r, which lets a budget buy higher ranks.
    storage : {"float32", "float16", "bfloat16", "int8"}, optional
        The data type in which weights and activations are going to be stored on the device: bounds on flash and ram
        count bytes of it. By default the model's own. Nothing is converted.
    cache : str or Path, optional
        Folder that keeps what a strategy measures, keyed by model, data, options and the model's outputs on the data: a
        search that was killed, or that is run again with another budget, measures nothing twice. Data of objects that
        cannot be looked into is not cached.
    seed : int
        The one seed for everything random.

    Returns
    -------
    Plan

    Raises
    ------
    InfeasibleBudget
        If the budget cannot be met; the message has the least reachable values.
    BudgetError
        If the budget cannot be read, or the model meets it as it is.
    RankfoldError
        For every other input that cannot be used; see `rankfold.errors`.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> plan = rf.plan(net, torch.randn(1, 32), budget="params<=50%")
    >>> sorted(plan.factored)
    ['0', '2']
    """
    check_options(
        budget=budget, strategy=strategy, config=config, methods=methods, method_options=method_options,
        overrides=overrides, rank_multiple=rank_multiple, gauge=gauge, storage=storage, seed=seed,
    )  # fmt: skip
    inventory = inspect(model, example_input, include=include, exclude=exclude, keep_first_last=keep_first_last)
    check_compressible(inventory)
    check_counted(inventory, None if budget is None else Budget.parse(budget))
    batches = reusable(calibration, example_input)
    moments = None
    if batches is not None and data_aware:
        moments = collect_moments(model, batches, inventory.compressible)
    planner = Planner(
        model, inventory, moments, batches, example_input=example_input, strategy=strategy, config=config,
        methods=methods, method_options=method_options, overrides=overrides, rank_multiple=rank_multiple, gauge=gauge,
        storage=storage, cache=cache, seed=seed,
        resources=() if budget is None else Budget.parse(budget).resources,
    )  # fmt: skip
    return planner.plan(budget)


class Planner:
    """One model's problem, posed once and answered for any budget: table and measurements are shared.

    Parameters
    ----------
    model : Module
        The model; left untouched.
    inventory : Inventory
        Its layers.
    moments : mapping or None
        Second moments of the layers' inputs.
    batches : iterable or None
        Calibration data that can be gone through more than once.
    example_input : object, optional
        What the model is called with; bounds on RAM need it.
    strategy, config, methods, method_options, overrides, rank_multiple, gauge, storage, cache, seed
        As for `plan`.
    resources : iterable of str
        What budgets are going to bound.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        moments: Mapping[str, Moments] | None,
        batches: Iterable[Any] | None,
        *,
        example_input: Any = None,
        strategy: str,
        config: Mapping[str, Any] | None,
        methods: str | Sequence[str] | None,
        method_options: Mapping[str, Mapping[str, Any]] | None,
        overrides: Mapping[str, Any] | None,
        rank_multiple: int | None,
        gauge: bool,
        storage: str | None,
        cache: str | Path | None,
        seed: int,
        resources: Iterable[str] = (),
    ) -> None:
        self.model = model
        self.example_input = example_input
        self.moments = moments
        self.strategy = strategies.get(strategy, config)
        table_config = TableConfig(
            methods=resolve_methods(methods),
            options=method_options or {},
            rank_multiple=_default_multiple(model) if rank_multiple is None else rank_multiple,
        )
        weight = partial(layer_weight, model)
        progress = partial(track, description="pricing candidates")

        @functools.cache
        def table(*, weighted: bool = True) -> CandidateTable:
            seen, problem = moments if weighted else None, self.problem
            return build_table(
                problem.pricing, weight, table_config, moments=seen, fixed=problem.fixed, progress=progress
            )

        self.judge = Judge(
            model, inventory, table,
            weight_table=table if moments is None else partial(table, weighted=False), batches=batches,
            moments=moments, cache=cache,
        )  # fmt: skip
        problem = Problem(
            pricing=Pricing.of(inventory, deploy_dtype=storage, gauge=gauge, resources=resources),
            table=table,
            weight=weight,
            seed=seed,
            methods=table_config.methods,
            options=table_config.options,
            rank_multiple=table_config.rank_multiple,
            judge=self.judge,
        )
        self.problem = with_overrides(problem, overrides) if overrides else problem

    def plan(self, budget: BudgetLike | None) -> Plan:
        """Return the strategy's plan for a budget."""
        bounds = None if budget is None else Budget.parse(budget)
        total = self.problem.inventory.total
        profile = None if bounds is None or not bounds.get(PEAK) else self.profile
        ram = None if profile is None else (profile.peak, profile.peak)
        if bounds is not None and not bounds.exceeded(total, total, ram=ram):
            raise BudgetError(f"budget {str(bounds)!r} is met by the model as it is; there is nothing to compress.")
        problem = replace(self.problem, budget=bounds)
        if bounds is None or profile is None:
            made = self.strategy.plan(problem)
        else:
            limit = bounds.limit(PEAK, profile.peak) or 0
            made = self.strategy.plan(replace(problem, table=functools.cache(partial(self._within, limit))))
            self._check_ram(made, bounds, profile, limit)
        provenance = replace(
            made.provenance,
            reconstruct="data" if self.moments else "weights",
            deploy_dtype=self.problem.pricing.deploy_dtype,
            weights_hash=self._weights_hash,
            versions={"rankfold": __version__, "torch": torch.__version__, "python": platform.python_version()},
        )
        return replace(made, layers=self._with_notes(made), provenance=provenance)

    def unknown(self) -> dict[str, str]:
        """Return a note for each layer of which the data says nothing, by name; those of plans made so far."""
        notes = dict.fromkeys(self.judge.every_unmeasured, UNMEASURED)
        if isinstance(self.moments, LayerMoments):
            notes |= dict.fromkeys(self.moments.unreached, UNREACHED)
        return notes

    def _with_notes(self, made: Plan) -> dict[str, Choice]:
        """Return a plan's choices, with a note on those that were made without data."""
        notes = self.unknown()
        return {
            name: replace(choice, reason="; ".join(filter(None, (choice.reason, notes[name]))))
            if name in notes and choice.method is not None
            else choice
            for name, choice in made.layers.items()
        }

    @functools.cached_property
    def profile(self) -> ActivationProfile:
        """The dense model's activation memory."""
        if self.example_input is None:
            raise BudgetError("a bound on ram needs the example input, on which the model's graph is exported.")
        found = export_graph(self.model, self.example_input)
        layers, dtype = self.problem.inventory.compressible, self.problem.pricing.deploy_dtype
        return activation_profile(found.graph, found.constants, found.users, layers, deploy_dtype=dtype)

    @functools.cached_property
    def _table_with_ram(self) -> CandidateTable:
        return with_ram(self.problem.table(), self.problem.inventory, self.profile)

    def _within(self, limit: int) -> CandidateTable:
        return within_ram(self._table_with_ram, limit)

    def _check_ram(self, made: Plan, bounds: Budget, profile: ActivationProfile, limit: int) -> None:
        """Hold a plan against the bound: a strategy may make candidates that are not in the table."""
        peak = plan_ram(made, self.problem.inventory, profile)
        if peak > limit:
            raise InfeasibleBudget(
                f"strategy {made.provenance.strategy!r} cannot meet budget {str(bounds)!r}: its plan takes more RAM. "
                "Use another strategy, give other ranks or loosen the budget.",
                [(PEAK, limit, peak, profile.peak)],
            )

    @functools.cached_property
    def _weights_hash(self) -> str:
        return state_hash(self.model)


def _default_multiple(model: nn.Module) -> int:
    device = next((p.device.type for p in model.parameters()), "cpu")
    return 1 if device == "cpu" else 8
