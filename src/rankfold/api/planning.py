"""Plan: method and ranks of every layer."""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from rankfold import methods, strategies
from rankfold._config import build_config, config_to_dict, spelled
from rankfold._hashing import state_hash
from rankfold._options import given
from rankfold._progress import say, track
from rankfold._turns import in_grad_turn
from rankfold._version import __version__
from rankfold.api.applying import apply_plan
from rankfold.api.calibrating import calibration_of
from rankfold.api.checks import BudgetLike, check_compressible, check_counted, check_measurable
from rankfold.api.latency import LatencySearch
from rankfold.api.options import Search, methods_for, reconstruction, search_of
from rankfold.calibration import LayerMoments
from rankfold.candidates import Estimator, Forecast, TableConfig, build_table, within_ram, without_slower
from rankfold.candidates.cache import Cache
from rankfold.cost import Pricing, activation_profile
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget
from rankfold.inventory import Spare, export_graph, inspect, layer_weight
from rankfold.inventory.padding import COUNTED
from rankfold.methods import sharing_prepared
from rankfold.pruning import channel_groups
from rankfold.records import (
    LATENCY,
    PEAK,
    ActivationProfile,
    Bound,
    Budget,
    CandidateTable,
    Choice,
    Inventory,
    Plan,
)
from rankfold.strategies import Need, Problem, Strategy, Workbench, check_needs
from rankfold.strategies.manual import with_overrides
from rankfold.surgery import Proof
from rankfold.surgery.narrowed import narrowed_copy
from rankfold.timing import DEFAULT_RUNTIME, Target, Timer
from rankfold.workbench import Bench, CompressedModel

UNREACHED = (
    "no calibration sample reaches it, or its input is always the same: its errors and factors come from the weight "
    "alone"
)
UNMEASURED = "no sample that the search looks at reaches it: its predicted loss comes from its own error"
"""Notes on layers of which the data says nothing."""


@in_grad_turn
@sharing_prepared()
def plan(
    model: nn.Module,
    example_input: Any,
    *,
    budget: BudgetLike | None = None,
    calibration: Iterable[Any] | None = None,
    **options: Any,
) -> Plan:
    """Select the method and the ranks of each layer.

    Parameters
    ----------
    model : Module
        A trained model; left untouched.
    example_input : object
        What the model is called with: a tuple is its positional arguments, a dict its keyword arguments, anything else
        is the single argument.
    budget : str, mapping, sequence or Budget, optional
        Upper bounds, such as ``"params<=25%"``, ``"params/4"``, ``{"macs": 0.5, "flash": "512KiB"}``. Without a
        budget, the strategy's default applies.
    calibration : iterable, optional
        Batches of inputs; labels are not needed. With calibration data, errors are those of the layers' outputs,
        otherwise those of the weights.
    **options
        Options of the search, such as ``methods="svd"`` or ``gauge=True``: the fields of `Search`.

    Returns
    -------
    Plan

    Raises
    ------
    InfeasibleBudget
        If the budget cannot be met; the message has the least reachable values.
    BudgetError
        If the budget cannot be parsed, or the model already meets it.
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
    bounds = None if budget is None else Budget.parse(budget)
    planner = Planner(model, example_input, search_of(options), calibration, bounds)
    return planner.plan(bounds)


class Planner:
    """Plans for one model under any budget; the candidate table and measurements are shared.

    Parameters
    ----------
    model : Module
        The model; left untouched.
    example_input : object
        What the model is called with.
    search : Search
        The options.
    calibration : iterable or None
        Batches of inputs.
    *budgets : Budget or None
        Budgets of the plans to come. Bounds that cannot be checked on this model raise before any work.
    given : collection of str
        Needs of the strategy that are met in addition to calibration data (`rankfold.strategies.Need`).

    Raises
    ------
    RankfoldError
        If there is nothing to compress, a bound is on what a plan alone cannot tell, or the strategy needs more.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        search: Search,
        calibration: Iterable[Any] | None,
        *budgets: Budget | None,
        given: Collection[Need] = (),
    ) -> None:
        self.how = reconstruction(search.reconstruct, has_data=calibration is not None, data_aware=search.data_aware)
        self.strategy = strategies.get(search.strategy)
        self.methods = methods_for(self.strategy, search.methods)
        self.spare = Spare(model, instead="rankfold.apply_ with a plan")
        for budget in budgets:
            check_measurable(budget, self.strategy.handles)
        self.data = calibration_of(model, calibration, example_input)
        check_needs(self.strategy, {*given, *self._given()})
        self.model = model
        self.example_input = example_input
        self.search = search
        selection = {name: getattr(search, name) for name in ("include", "exclude", "keep_first_last")}
        inspected = inspect(model, example_input, **selection)
        bounded = [name for budget in budgets if budget is not None for name in budget.resources]
        check_compressible(inspected)
        check_counted(inspected, *budgets)
        self.timer = self._timer(latency_bounded=LATENCY in bounded)
        timed = () if self.timer is None else (LATENCY,)
        self.pricing = Pricing.of(
            inspected, deploy_dtype=search.deploy_dtype, gauge=search.gauge, resources=(*bounded, *timed),
            profile=self._profile(model, inspected) if PEAK in bounded else None,
            times=None if self.timer is None else self.timer.layers,
            never_slower=self.timer is not None and search.never_slower,
        )  # fmt: skip

    def _timer(self, *, latency_bounded: bool) -> Timer | None:
        """Return what measures the latency; None without a target or a bound on latency."""
        search = self.search
        if search.target is None and not latency_bounded:
            return None
        if search.gauge:
            raise ConfigError(
                f"{spelled('gauge', True)} cannot be combined with a target or a bound on latency: gauged layers are "
                "not timed. Remove one of them."
            )
        if "recipe" in self.strategy.needs and (latency_bounded or search.never_slower):
            raise ConfigError(
                f"strategy {self.strategy.name!r} trains every model that it tries, so measured latency cannot correct "
                f"its plan. Use another strategy, or a target with {spelled('never_slower', False)} and no bound on "
                "latency."
            )
        cache = None if search.cache is None else Cache(search.cache)
        return Timer(self.model, self.example_input, Target.of(search.target or DEFAULT_RUNTIME), cache)

    @functools.cached_property
    def moments(self) -> LayerMoments | None:
        """The second moments that candidates are judged by."""
        if self.data is None or not self.search.data_aware:
            return None
        samples = self._settled[0].moment_samples
        data = self.data if samples is None else self.data.leading(samples)
        return data.moments(self.inventory.compressible)

    @functools.cached_property
    def problem(self) -> Problem:
        """The problem of the strategy, without a budget."""
        search, model = self.search, self.model
        chosen, method_options = self.methods
        moments = self.moments
        block = 1 if self.timer is None else max(map(self.timer.layers.block, self.inventory.compressible))
        table_config = TableConfig(
            methods=chosen,
            options=method_options,
            rank_multiple=_default_multiple(model) if search.rank_multiple is None else search.rank_multiple,
            block=block,
        )
        weight = partial(layer_weight, model)
        progress = partial(track, description="pricing candidates")

        @functools.cache
        def table(*, weighted: bool = True) -> CandidateTable:
            seen = moments if weighted else None
            built = build_table(posed.pricing, weight, table_config, moments=seen, fixed=posed.fixed, progress=progress)
            return without_slower(built, posed.pricing) if posed.pricing.never_slower else built

        estimator = Estimator(
            model, self.pricing.inventory, table,
            weight_table=table if moments is None else partial(table, weighted=False),
            batches=None if self.data is None else self.data.batches, moments=moments, cache=search.cache,
            choice=self._settled[1], spare=self.spare,
        )  # fmt: skip
        posed = Problem(
            pricing=self.pricing,
            table=table,
            weight=weight,
            seed=search.seed,
            methods=table_config.methods,
            options=table_config.options,
            rank_multiple=table_config.rank_multiple,
            block=block,
            estimator=estimator,
            find_groups=functools.cache(lambda: channel_groups(model, self.example_input)),
        )
        if search.overrides:
            posed = with_overrides(posed, search.overrides)
        return posed

    @functools.cached_property
    def _settled(self) -> tuple[Strategy, tuple[dict[str, Any], dict[str, Any]] | None]:
        """The strategy with options within the time limit, and what the cache keeps of this choice.

        An interrupted search has its choice in the cache.
        """
        data, limit, given_strategy = self.data, self.search.time_limit, self.strategy
        if data is None:
            return given_strategy, None
        stored = None if self.search.cache is None else Cache(self.search.cache)
        key = {
            "what": "options within a time limit", "limit": limit, "weights": self._weights_hash,
            "strategy": [given_strategy.name, config_to_dict(given_strategy)],
            "options": given(replace(self.search, cache=None)), "versions": [__version__, str(torch.__version__)],
        } if stored is not None else {}  # fmt: skip
        known = stored.get(key) if stored is not None else None
        if isinstance(known, dict):
            return build_config(type(given_strategy), known, owner=f"strategy {given_strategy.name!r}"), None
        names, options = self.methods
        factorizations = [methods.get(name, options.get(name)) for name in names]
        forecast = partial(
            Forecast.of, self.model, self.inventory, data.batches, factorizations,
            moments=self.search.data_aware, spare=self.spare,
        )  # fmt: skip
        strategy, text = given_strategy.within(forecast, limit)
        if text is not None:
            say(text)
        return strategy, None if strategy == given_strategy else (key, config_to_dict(strategy))

    @functools.cached_property
    def workbench(self) -> Workbench:
        """What a strategy that loops works with; `compress` sets another one, which measures and trains as well."""

        def make(plan: Plan, like: nn.Module | None) -> CompressedModel:
            applied = apply_plan(
                self.model, plan, self.data, self.how, example_input=self.example_input, spare=self.spare, like=like
            )
            return CompressedModel(model=applied.model)

        return Bench(self.model, make, batches=None if self.data is None else self.data.batches)

    def _given(self) -> set[Need]:
        """Return what the calibration data gives to a strategy."""
        if self.data is None:
            return set()
        labeled = "labels" in self.strategy.needs and self.data.first_batch()[1] is not None
        return {"calibration", "labels"} if labeled else {"calibration"}

    @property
    def inventory(self) -> Inventory:
        """The original's layers, at the deployment data type."""
        return self.pricing.inventory

    @property
    def estimator(self) -> Estimator:
        """What tells the loss of candidates."""
        assert isinstance(self.problem.estimator, Estimator)
        return self.problem.estimator

    def plan(self, bounds: Budget | None) -> Plan:
        """Return the strategy's plan for a budget."""
        total = self.problem.inventory.total
        profile = None if bounds is None or not bounds.get(PEAK) else self.pricing.profile
        ram = None if profile is None else (profile.peak, profile.peak)
        handled = any(bounds.get(resource) for resource in self.strategy.handles) if bounds is not None else False
        if bounds is not None and not handled and not bounds.exceeded(total, total, ram=ram):
            raise BudgetError(f"the model already meets budget {str(bounds)!r}; there is nothing to compress.")
        made = self._planned(bounds) if self.timer is None else self._timed(bounds, self.timer)
        provenance = replace(
            made.provenance,
            budget=None if bounds is None else str(bounds),
            errors="outputs" if self.moments else "weights",
            deploy_dtype=self.search.deploy_dtype,
            options=given(replace(self.search, cache=None)),  # where measurements are kept does not change a plan
            weights_hash=self._weights_hash,
            versions={"rankfold": __version__, "torch": torch.__version__, "python": platform.python_version()},
        )
        return replace(made, layers=self._with_notes(made), provenance=provenance)

    def _planned(self, bounds: Budget | None) -> Plan:
        """Return the strategy's plan, without the origin that does not depend on the strategy."""
        problem = replace(self.problem, budget=bounds, workbench=self.workbench)
        profile = None if bounds is None or not bounds.get(PEAK) else self.pricing.profile
        if bounds is None or profile is None:
            return self._settled[0].plan(problem)
        limit = bounds.limit(PEAK, profile.peak) or 0
        within = functools.cache(lambda: within_ram(self.problem.table(), limit))
        made = self._settled[0].plan(replace(problem, table=within))
        self._check_ram(made, bounds, profile, limit)
        return made

    def _timed(self, bounds: Budget | None, timer: Timer) -> Plan:
        """Return a plan whose model is measured to meet the bound on latency, and is no slower than the original."""
        total = self.inventory.total
        limit = None if bounds is None else bounds.limit(LATENCY, total)
        others = () if bounds is None else tuple(b for b in bounds.bounds if b.resource != LATENCY)
        if limit is None and not self.search.never_slower:
            return self._planned(bounds)

        def solve(at: int | None) -> Plan:
            own = () if at is None else (Bound(resource=LATENCY, value=max(at, 1), relative=False),)
            return self._planned(Budget((*others, *own)) if others or own else None)

        searching = LatencySearch(
            solve=solve,
            predict=lambda made: self.pricing.plan_cost(made).get(LATENCY),
            measure=lambda made: round(timer.compare_plan(made).ratio * timer.dense.ns),
            limit=timer.dense.ns if limit is None else limit,
            dense=timer.dense.ns,
            bounded=limit is not None,
        )  # fmt: skip
        try:
            best = searching.run()
        except InfeasibleBudget as error:
            raise self._too_slow(bounds, error, timer) from error
        search = {**best.plan.provenance.search, LATENCY: {"target": str(timer.target), **best.to_dict()}}
        return replace(best.plan, provenance=replace(best.plan.provenance, search=search))

    def _too_slow(self, bounds: Budget | None, error: InfeasibleBudget, timer: Timer) -> InfeasibleBudget:
        """Return the error about a budget that cannot be met on the target."""
        asked = "a model that is no slower" if bounds is None else f"budget {str(bounds)!r}"
        reason = str(error).splitlines()[0]
        strict, hint = "", "" if bounds is None else bounds.share_hint()
        if self.search.never_slower:
            strict = f"{spelled('never_slower', False)} admits candidates and models that are slower. "
        return InfeasibleBudget(
            f"{asked} is out of reach on target {str(timer.target)!r}: {reason} {strict}Loosen the bounds or allow "
            f"more methods. {'' if hint in reason else hint}".rstrip(),
            error.rows,
        )

    def prove(self) -> None:
        """Raise if a copy of the model runs the original: before any work, not after it."""
        Proof(self.model, (), self.example_input).check(self.spare.lend())

    def forget(self) -> None:
        """Free the second moments, what was measured, and the copy."""
        self.spare.free()
        for name in ("moments", "problem", "workbench"):
            self.__dict__.pop(name, None)
        if self.data is not None:
            self.data.forget()

    def unknown(self) -> dict[str, str]:
        """Return a note for each layer of which the data says nothing, by name; those of plans made so far."""
        notes = dict.fromkeys(self.estimator.every_unmeasured, UNMEASURED)
        if self.moments is not None:
            notes |= dict.fromkeys(self.moments.padded, COUNTED)
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

    def _profile(self, model: nn.Module, inventory: Inventory) -> ActivationProfile:
        """Return the activation memory of the dense model, or of a narrowed one."""
        found, dtype = export_graph(model, self.example_input), self.search.deploy_dtype
        return activation_profile(found.graph, found.constants, found.users, inventory.compressible, deploy_dtype=dtype)

    def _check_ram(self, made: Plan, bounds: Budget, profile: ActivationProfile, limit: int) -> None:
        """Check a plan against the bound: a strategy may use candidates that are not in the table."""
        peak = self._narrowed_pricing(made).peak_ram(made)
        if peak > limit:
            raise InfeasibleBudget(
                f"strategy {made.provenance.strategy!r} cannot meet budget {str(bounds)!r}: its plan takes more RAM. "
                "Use another strategy, give other ranks or loosen the budget.",
                [(PEAK, limit, peak, profile.peak)],
            )

    def _narrowed_pricing(self, made: Plan) -> Pricing:
        """Return the prices in peak RAM of the model that the plan's narrowing leaves."""
        if not made.narrowing:
            return self.pricing
        narrow = narrowed_copy(self.model, made.narrowing)
        inventory = inspect(narrow, self.example_input)
        return replace(self.pricing, inventory=inventory, profile=self._profile(narrow, inventory))

    @functools.cached_property
    def _weights_hash(self) -> str:
        return state_hash(self.model)


def _default_multiple(model: nn.Module) -> int:
    device = next((p.device.type for p in model.parameters()), "cpu")
    return 1 if device == "cpu" else 8
