"""Convert plain factors to those of a gauged blueprint, and check that they compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankfold.errors import GaugeError
from rankfold.factor.gauge import Gauge, gauge
from rankfold.records import Blueprint, Choice, GaugedSpec, LayerInfo

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest change of a layer's weight by gauged factors that are rounded to a data type: relative Frobenius norm."""


def gauge_factors(blueprint: Blueprint, factors: Sequence[Tensor]) -> tuple[list[Tensor | Gauge], float]:
    """Fix the gauge at the bonds that a blueprint, a result of `gauge_blueprint`, names.

    Takes the canonical factors of the plain blueprint. Returns, in the blueprint's order, canonical factors of plain
    stages and gauges of gauged ones, and the largest condition number of a block of pivots.
    """
    specs = [spec for spec in blueprint.stages if spec.factor_shape is not None]
    # Linear factors get a group dimension of size 1.
    plain = [f.unsqueeze(0) if f.ndim == 2 else f for f in factors]
    gauges: dict[int, Gauge] = {}
    # A stage must absorb the transfer of its other bond before it is gauged. An identity on the input side belongs to
    # the bond after the stage, so these stages are gauged from first to last, and the others from last to first.
    for at, spec in enumerate(specs):
        if isinstance(spec, GaugedSpec) and spec.side == "input":
            gauges[at] = gauge(plain[at].flatten(2).mT)
            after = plain[at + 1]
            flat = after.flatten(3) if after.ndim > 3 else after.unsqueeze(-1)
            plain[at + 1] = (gauges[at].transfer.unsqueeze(1) @ flat).reshape(after.shape)
    for at, spec in reversed(list(enumerate(specs))):
        if isinstance(spec, GaugedSpec) and spec.side == "output":
            gauges[at] = gauge(plain[at].flatten(2))
            before = plain[at - 1]
            plain[at - 1] = (gauges[at].transfer @ before.flatten(2)).reshape(before.shape)
    shaped = [p if f.ndim > 2 else p.squeeze(0) for p, f in zip(plain, factors, strict=True)]
    condition = max((g.condition for g in gauges.values()), default=1.0)
    return [gauges.get(at, factor) for at, factor in enumerate(shaped)], condition


def check_gauge(
    weight: Tensor, reference: Tensor, condition: float, layer: LayerInfo, choice: Choice, dtype: torch.dtype
) -> None:
    """Raise `GaugeError` unless gauged factors, rounded to `dtype`, compose to the same weight as the plain ones.

    `weight` is that of the gauged factors, `reference` that of the plain ones. `condition` is for the message.
    """
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    scale = scale if scale > 0 else 1.0
    norm = float((reference / scale).norm())
    difference = float((weight / scale - reference / scale).norm()) / (norm if norm > 0 else 1.0)
    limit = LIMITS[dtype]
    if not difference <= limit:
        raise GaugeError(
            f"gauging {layer.title} ({choice.method}, ranks {list(choice.ranks)}) would change its weight by "
            f"{difference:.1e} relative in {str(dtype).removeprefix('torch.')}, more than the allowed {limit:.0e}: the "
            f"block of pivots has the condition number {condition:.1e}. Leave gauge out for this layer."
        )
