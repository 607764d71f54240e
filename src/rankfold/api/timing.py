"""``layer_times``: the table of measured layer times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rankfold import methods as factorizations
from rankfold._progress import track
from rankfold._turns import in_grad_turn
from rankfold.api.checks import check_compressible
from rankfold.api.options import chosen_methods
from rankfold.candidates.cache import Cache
from rankfold.cost import Pricing
from rankfold.inventory import inspect
from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks
from rankfold.reporting.latency import LatencyTable, TimeRow
from rankfold.timing import DEFAULT_RUNTIME, LayerTable, Reading, Target, Timer
from rankfold.timing.layers import geometry_of

SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the full ranks that the table shows."""


@in_grad_turn
def layer_times(
    model: nn.Module,
    example_input: Any,
    *,
    target: str | Target = DEFAULT_RUNTIME,
    methods: Any = None,
    include: Any = None,
    exclude: Any = None,
    cache: str | Path | None = None,
) -> LatencyTable:
    """Measure the time of a model's layers on a target, dense and with some ranks of each method.

    Layers of the same geometry are measured once. A search with the same target and cache uses the same measurements.

    Parameters
    ----------
    model : Module
        The model; weights do not affect the times. It is left unchanged.
    example_input : object
        What the model is called with.
    target : str or Target
        Where it runs, such as ``"onnxruntime"`` or ``"torch, batch=32, threads=1"``.
    methods, include, exclude
        As for `Search`.
    cache : str or Path, optional
        Folder for measurements.

    Returns
    -------
    LatencyTable

    Raises
    ------
    UnknownNameError
        If the runtime, a setting or a method is unknown.
    ConfigError
        If the target is not available here, or a package is missing.
    RankfoldError
        If the machine is too busy to time the dense model, or the folder cannot be written. Layers that cannot be timed
        are marked in the table.
    """
    names, options = chosen_methods(methods)
    stored = None if cache is None else Cache(cache)
    timer = Timer(model, example_input, Target.of(target), stored)
    inventory = inspect(model, example_input, include=include, exclude=exclude)
    check_compressible(inventory)
    pricing = Pricing.of(inventory)
    chosen = [factorizations.get(name, options.get(name)) for name in names]
    alike: dict[Any, list[LayerInfo]] = {}
    for layer in inventory.compressible:
        alike.setdefault((geometry_of(layer), timer.layers.calls[layer.name]), []).append(layer)
    rows = [
        row for group in track(list(alike.values()), "timing layers") for row in _rows(group, timer, pricing, chosen)
    ]
    blocks = {layer.describe().split()[0]: timer.layers.block(layer) for layer in inventory.compressible}
    return LatencyTable(
        target=str(timer.target),
        facts={name: str(fact) for name, fact in timer.runtime.facts(timer.target).items()},
        whole_ns=timer.dense.ns,
        whole_spread=timer.dense.spread,
        blocks=blocks,
        rows=tuple(rows),
    )


def _rows(group: Sequence[LayerInfo], timer: Timer, pricing: Pricing, chosen: Sequence[Method]) -> Iterator[TimeRow]:
    layer, table = group[0], timer.layers
    settings = [
        (method, candidate.ranks)
        for method in chosen
        if method.supports(layer) is None
        for candidate in pricing.candidates(layer, method, _shown(layer, method, table))
    ]
    table.measure(layer, [method.blueprint(layer, ranks) for method, ranks in settings])
    names = tuple(one.name for one in group)

    def row(method: str | None, ranks: Ranks, reading: Reading) -> TimeRow:
        return TimeRow(
            layers=names, layer=layer.describe(), method=method, ranks=ranks, ns=reading.ns, ratio=reading.ratio,
            spread=reading.spread, noisy=reading.noisy,
        )  # fmt: skip

    yield row(None, (), table.reading(layer, None))
    for method, ranks in settings:
        yield row(method.name, ranks, table.reading(layer, method.blueprint(layer, ranks)))


def _shown(layer: LayerInfo, method: Method, table: LayerTable) -> list[Ranks]:
    """Return some ranks: `SHARES` of the full ones, in multiples of the runtime's block."""
    block, full = table.block(layer), method.max_ranks(layer)
    shown = [tuple(min(max(round(share * most / block), 1) * block, most) for most in full) for share in SHARES]
    return list(dict.fromkeys(shown))
