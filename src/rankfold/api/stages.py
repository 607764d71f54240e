"""Plan, and factorize one layer."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankfold import methods, strategies
from rankfold._progress import track
from rankfold._version import __version__
from rankfold.api.checks import BudgetLike, check_compressible, check_options
from rankfold.calibration import collect_moments
from rankfold.candidates import TableConfig, build_table, resolve_methods
from rankfold.errors import BudgetError, ConfigError
from rankfold.factor.moments import Moments
from rankfold.inventory import inspect, layer_weight, static_inventory
from rankfold.records import Budget, Candidate, Choice, Inventory, LayerInfo, Plan, Problem, gauge_blueprint
from rankfold.storage.artifact import tensor_hash
from rankfold.strategies.manual import resolve
from rankfold.surgery import Factored
from rankfold.surgery.apply import factor_layer


def plan(
    model: nn.Module,
    example_input: Any,
    *,
    budget: BudgetLike | None = None,
    strategy: str = "energy",
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
        A registered strategy: ``"energy"``, ``"uniform"``, ``"vbmf"``, ``"manual"``.
    config : mapping, optional
        Options of the strategy.
    methods : str or sequence of str, optional
        Factorizations to choose from, or ``"all"``; by default svd, tucker and spatial_svd.
    method_options : mapping of str to mapping, optional
        Options of factorizations, by method name.
    calibration : iterable, optional
        Batches of inputs, labels not needed; with them errors are those of the layers' outputs.
    data_aware : bool
        False judges by the weights alone, calibration data or not.
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
        overrides=overrides, rank_multiple=rank_multiple, gauge=gauge, seed=seed,
    )  # fmt: skip
    inventory = inspect(model, example_input, include=include, exclude=exclude, keep_first_last=keep_first_last)
    check_compressible(inventory)
    moments = None
    if calibration is not None and data_aware:
        moments = collect_moments(model, calibration, inventory.compressible)
    return make_plan(
        model,
        inventory,
        moments,
        budget=budget,
        strategy=strategy,
        config=config,
        methods=methods,
        method_options=method_options,
        overrides=overrides,
        rank_multiple=rank_multiple,
        gauge=gauge,
        seed=seed,
    )


def make_plan(
    model: nn.Module,
    inventory: Inventory,
    moments: Mapping[str, Moments] | None,
    *,
    budget: BudgetLike | None,
    strategy: str,
    config: Mapping[str, Any] | None,
    methods: str | Sequence[str] | None,
    method_options: Mapping[str, Mapping[str, Any]] | None,
    overrides: Mapping[str, Any] | None,
    rank_multiple: int | None,
    gauge: bool,
    seed: int,
) -> Plan:
    """`plan`, for an inventory and moments that are there already."""
    chooser = strategies.get(strategy, config)
    bounds = None if budget is None else Budget.parse(budget)
    if bounds is not None and not bounds.exceeded(inventory.total, inventory.total):
        raise BudgetError(f"budget {str(bounds)!r} is met by the model as it is; there is nothing to compress.")
    table_config = TableConfig(
        methods=resolve_methods(methods),
        options=method_options or {},
        rank_multiple=_default_multiple(model) if rank_multiple is None else rank_multiple,
        gauge=gauge,
    )
    weight = partial(layer_weight, model)
    fixed, inventory = _fix(inventory, table_config, overrides, weight, seed)
    progress = partial(track, description="pricing candidates")

    @cache
    def table() -> Any:
        return build_table(inventory, weight, table_config, moments=moments, fixed=fixed, progress=progress)

    problem = Problem(
        inventory=inventory,
        table=table,
        weight=weight,
        budget=bounds,
        seed=seed,
        methods=table_config.methods,
        options=table_config.options,
        rank_multiple=table_config.rank_multiple,
        gauge=table_config.gauge,
        fixed=fixed,
    )
    made = chooser.plan(problem)
    provenance = replace(
        made.provenance,
        reconstruct="data" if moments else "weights",
        weights_hash=tensor_hash({k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}),
        versions={"rankfold": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
    return replace(made, provenance=provenance)


def _fix(
    inventory: Inventory,
    config: TableConfig,
    overrides: Mapping[str, Any] | None,
    weight: Callable[[str], Tensor],
    seed: int,
) -> tuple[dict[str, Candidate], Inventory]:
    """Turn overrides into fixed candidates, and into skip reasons for the layers that they keep."""
    if not overrides:
        return {}, inventory
    problem = Problem(
        inventory=inventory,
        table=_no_table,
        weight=weight,
        seed=seed,
        options=config.options,
        rank_multiple=config.rank_multiple,
        gauge=config.gauge,
    )
    chosen = resolve(problem, overrides, owner="'overrides'")
    layers = tuple(
        replace(layer, skip=layer.skip or "kept by an override")
        if layer.name in chosen and chosen[layer.name] is None
        else layer
        for layer in inventory.layers
    )
    return {n: c for n, c in chosen.items() if c is not None}, replace(inventory, layers=layers)


def _no_table() -> Any:
    raise AssertionError("overrides do not look at the table")


def _default_multiple(model: nn.Module) -> int:
    device = next((p.device.type for p in model.parameters()), "cpu")
    return 1 if device == "cpu" else 8


def factorize(
    layer: nn.Module,
    method: str,
    ranks: int | float | Sequence[int],
    *,
    options: Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
    gauge: bool = False,
) -> Factored:
    """Factor one layer.

    Parameters
    ----------
    layer : Module
        A convolution or linear layer; left untouched.
    method : str
        A registered factorization.
    ranks : int, sequence of int or float
        Ranks in the order that the method documents; a float is a share of the layer's parameters, within which the
        ranks of least error are chosen.
    options : mapping, optional
        Options of the method.
    calibration : iterable, optional
        Batches of inputs of the layer.
    gauge : bool
        Gauge the factors: the same weight with fewer parameters, of the same ranks.

    Returns
    -------
    Factored
        Its ``weight`` is the approximation.

    Raises
    ------
    UnsupportedLayer, RankError, InvalidWeight, GaugeError
        As they say.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> small = rf.factorize(torch.nn.Conv2d(64, 64, 3), "tucker", (16, 16))
    >>> sum(p.numel() for p in small.parameters())
    4416
    """
    info = _single_layer(layer)
    chosen = methods.get(method, options)
    methods.check_supported(chosen, info)
    moments = collect_moments(layer, calibration, [info]).get(info.name) if calibration is not None else None
    if isinstance(ranks, float):
        wanted = _ranks_for_share(chosen, info, layer, ranks, moments, gauge)
    else:
        listed = ranks if isinstance(ranks, list | tuple) else [ranks]
        wanted = tuple(cast(int, int(r) if isinstance(r, Integral) and not isinstance(r, bool) else r) for r in listed)
    methods.check_ranks(chosen, info, wanted)
    choice = Choice(method=method, ranks=wanted, options=options or {}, gauge=gauge)
    methods.check_choice(info, choice)
    return factor_layer(layer, info, choice, moments)


def _single_layer(layer: nn.Module) -> LayerInfo:
    infos = [info for info in static_inventory(layer) if info.name == ""]
    if not infos:
        raise ConfigError(
            f"factorize takes one convolution or linear layer. Got {type(layer).__name__} instead; "
            "use compress for a model."
        )
    return infos[0]


def _ranks_for_share(
    method: methods.Method, info: LayerInfo, layer: nn.Module, share: float, moments: Moments | None, gauge: bool
) -> tuple[int, ...]:
    if not 0 < share <= 1:
        raise ConfigError(f"a share of the layer's parameters must lie in (0, 1]. Got {share!r} instead.")
    total = sum(p.numel() for p in layer.parameters())
    grid = {r: method.blueprint(info, r) for r in method.rank_grid(info, points=256)}
    if gauge:
        grid = {r: gauge_blueprint(plain) for r, plain in grid.items()}
    fitting = [r for r, blueprint in grid.items() if blueprint.params <= share * total]
    if not fitting:
        raise ConfigError(f"no ranks of {method.name!r} keep {info.describe()} within {share:g} of its parameters.")
    prepared = methods.prepare(method, layer_weight(layer, ""), info, moments)
    return min(fitting, key=lambda r: (prepared.error(r), r))
