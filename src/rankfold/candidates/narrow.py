"""Narrow, factored networks as weights of the original, to measure them without building them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from rankfold.factor.moments import Moments
from rankfold.inventory import find_module, layer_weight
from rankfold.inventory.narrowing import refitted, widened_weight
from rankfold.records import Candidate, Inventory, Narrowing, narrowed_layer
from rankfold.surgery.approximate import approximations


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowPlan:
    """Channels that are removed, and candidates of the narrow layers by name."""

    narrowing: Narrowing = field(default_factory=Narrowing)
    chosen: Mapping[str, Candidate] = field(default_factory=dict)


def whole_weights(
    model: nn.Module, inventory: Inventory, plan: NarrowPlan, moments: Mapping[str, Moments]
) -> dict[str, Tensor]:
    """Return weights in the original's shapes with which it computes what the network of a plan computes.

    Removed inputs have weights of zero, so nothing reads the removed channels, except for normalizations over channels
    (`normalizes_over`).

    Parameters
    ----------
    model : Module
        The original.
    inventory : Inventory
        Its layers.
    plan : NarrowPlan
        What is removed and factored.
    moments : mapping of str to Moments
        Second moments that weights and factors are fitted to.

    Returns
    -------
    dict
        Weights by name, of the layers that differ from the original's.
    """
    weights, removed = dict[str, Tensor](), plan.narrowing.removed()
    for layer in inventory:
        gone, candidate, seen = removed.get(layer.name, {}), plan.chosen.get(layer.name), moments.get(layer.name)
        if not gone and candidate is None:
            continue
        weight = layer_weight(model, layer.name)
        if gone:
            weight, seen = refitted(weight, layer, gone, seen)
        if candidate is not None:
            weight = next(approximations(weight, narrowed_layer(layer, gone), [candidate], seen))
        weights[layer.name] = widened_weight(weight, layer, gone) if gone else weight
    return weights


def normalizes_over(model: nn.Module, narrowing: Narrowing) -> bool:
    """Return whether a LayerNorm or GroupNorm loses channels, whose values change those of the others."""
    names = {axis.name for group in narrowing for axis in group.on("channels")}
    return any(isinstance(find_module(model, name), nn.LayerNorm | nn.GroupNorm) for name in names)
