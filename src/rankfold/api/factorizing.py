"""Factor one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from torch import nn

from rankfold import methods
from rankfold._turns import in_turn
from rankfold.calibration import collect_moments
from rankfold.cost import Pricing
from rankfold.errors import ConfigError
from rankfold.inventory import layer_weight, static_inventory
from rankfold.records import Choice, Inventory, LayerInfo
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
    UnsupportedLayer
        If the method does not support the layer.
    RankError
        If a rank is out of range.
    InvalidWeight
        If the weight is not finite, or cannot be read.
    GaugeError
        If the factors cannot be gauged.

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
        error = methods.prepare(chosen, layer_weight(layer, ""), info, moments).error
        wanted = Pricing(Inventory(layers=(info,))).ranks_within(info, chosen, ranks, error, points=256, gauge=gauge)
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
