"""Factor one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from torch import nn

from rankfold import methods
from rankfold._turns import in_turn
from rankfold.calibration import collect_moments
from rankfold.errors import ConfigError
from rankfold.factor.moments import Moments
from rankfold.inventory import layer_weight, static_inventory
from rankfold.records import Choice, LayerInfo, gauge_blueprint
from rankfold.surgery import Factored
from rankfold.surgery.apply import factor_layer


@in_turn
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
        raise ConfigError(f"'ranks', as a share of the layer's parameters, must lie in (0, 1]. Got {share!r} instead.")
    total = sum(p.numel() for p in layer.parameters())
    grid = {r: method.blueprint(info, r) for r in method.rank_grid(info, points=256)}
    if gauge:
        grid = {r: gauge_blueprint(plain) for r, plain in grid.items()}
    fitting = [r for r, blueprint in grid.items() if blueprint.params <= share * total]
    if not fitting:
        least = min(blueprint.params for blueprint in grid.values()) / total
        raise ConfigError(
            f"no ranks of {method.name!r} keep {info.describe()} within {share:g} of its parameters, {least:.3g} "
            "is the least. Raise 'ranks', or use another method."
        )
    prepared = methods.prepare(method, layer_weight(layer, ""), info, moments)
    return min(fitting, key=lambda r: (prepared.error(r), r))
