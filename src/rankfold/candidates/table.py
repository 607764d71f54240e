"""The candidate table: the cost and error of every method and rank setting of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from rankfold import methods
from rankfold._config import require
from rankfold.cost import Pricing
from rankfold.factor.moments import Moments
from rankfold.records import Candidate, CandidateTable, LayerInfo

DEFAULT_METHODS = ("svd", "tucker", "spatial_svd")
"""Default methods, whose errors (for tucker, an upper bound) are known for every rank without factoring."""

DEFAULT_PAIR, DEFAULT_TRAIN = ("tucker", "svd"), ("tt", "svd")
"""Default methods of strategies that take one for convolutions and one for linear layers and 1x1 convolutions."""

FILTERWISE = "filterwise_cp"
"""The method of strategies that factor every filter on its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Methods and rank grid of the candidate table."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of methods, by method name
    rank_multiple: int = 1
    points: int = 64  # approximate number of values of each rank
    block: int = 1  # multiples of this number are always among the ranks

    def __post_init__(self) -> None:
        require(len(self.methods) > 0, "methods", self.methods, "a list of at least one method")
        require(
            isinstance(self.options, Mapping), "method_options", self.options, "a mapping of method names to options"
        )
        for name in (*self.methods, *self.options):
            methods.registry.get(name)
        require(
            isinstance(self.rank_multiple, int) and self.rank_multiple >= 1,
            "rank_multiple",
            self.rank_multiple,
            "an integer >= 1",
        )
        require(isinstance(self.points, int) and self.points >= 2, "points", self.points, "an integer >= 2")


def resolve_methods(names: str | Sequence[str] | None, default: tuple[str, ...] = DEFAULT_METHODS) -> tuple[str, ...]:
    """Return the default methods for None, all methods for ``"all"``, otherwise the given names, after a check."""
    if names is None:
        return default
    require(isinstance(names, Iterable), "methods", names, "a name or a list of names")
    listed = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    if listed == ["all"]:
        return tuple(methods.registry.names())
    for name in listed:
        methods.registry.get(name)
    return tuple(dict.fromkeys(listed))


def build_table(
    pricing: Pricing,
    weight: Callable[[str], Tensor],
    config: TableConfig,
    *,
    moments: Mapping[str, Moments] | None = None,
    fixed: Mapping[str, Candidate] | None = None,
    progress: Callable[[Iterable[LayerInfo]], Iterable[LayerInfo]] = iter,
) -> CandidateTable:
    """Return the candidates of every compressible layer with fewer parameters and no more MACs than the layer.

    One layer is prepared at a time, so memory depends on the largest layer.

    Parameters
    ----------
    pricing : Pricing
        Prices of the model's layers.
    weight : callable
        Returns a layer's weight by name.
    config : TableConfig
        Methods and rank grid.
    moments : mapping or None
        Second moments by layer name; with moments, errors are those of outputs.
    fixed : mapping or None
        Overrides, by layer name.
    progress : callable
        Wraps the iteration over layers.
    """
    chosen = [methods.get(name, config.options.get(name)) for name in config.methods]
    inventory = pricing.inventory
    rows: dict[str, tuple[Candidate, ...]] = {}
    reasons: dict[str, str] = {layer.name: layer.skip for layer in inventory if layer.skip is not None}
    fixed = fixed or {}
    for layer in progress([layer for layer in inventory if layer.skip is None and layer.name not in fixed]):
        unsupported = {method.name: method.supports(layer) for method in chosen}
        fitting = [method for method in chosen if unsupported[method.name] is None]
        if not fitting:
            reasons[layer.name] = "; ".join(sorted({r for r in unsupported.values() if r is not None}))
            continue
        tensor = weight(layer.name)
        row = [
            candidate
            for method in fitting
            for candidate in _candidates(method, tensor, layer, pricing, (moments or {}).get(layer.name), config)
        ]
        if row:
            rows[layer.name] = tuple(row)
        else:
            reasons[layer.name] = "no rank has fewer parameters without more MACs"
    dense = {name: inventory.costs[name] for name in (*rows, *fixed)}
    return CandidateTable(
        rows=rows, dense=dense, total=inventory.total, reasons=reasons, fixed=fixed,
        ram=pricing.peaks(rows, fixed.values()),
    )  # fmt: skip


def _candidates(
    method: methods.Method,
    weight: Tensor,
    layer: LayerInfo,
    pricing: Pricing,
    moments: Moments | None,
    config: TableConfig,
) -> list[Candidate]:
    options = config.options.get(method.name)
    multiples = dict.fromkeys((config.rank_multiple, math.lcm(config.rank_multiple, config.block)))
    grids = [method.rank_grid(layer, multiple=multiple, points=config.points) for multiple in multiples]
    smaller = pricing.candidates(layer, method, dict.fromkeys(ranks for grid in grids for ranks in grid), options)
    if not smaller:
        return []
    prepared = methods.prepare(method, weight, layer, moments)
    return [replace(candidate, error=prepared.error(candidate.ranks)) for candidate in smaller]
