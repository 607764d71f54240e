"""Carry trained values over from one compressed form of a model to another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from rankfold._state import load_state_, own_state
from rankfold.records import Choice, LayerInfo, Plan
from rankfold.surgery.apply import plan_of


def take_over_(model: nn.Module, like: nn.Module, layers: Iterable[LayerInfo]) -> None:
    """Set the values of a compressed model to those of another one of the same original, where both agree.

    Parameters
    ----------
    model : Module
        The compressed model to change.
    like : Module
        The other one. Its layers that have the same method, options, ranks and channels are carried over, and
        everything outside of factored and narrowed layers.
    layers : iterable of LayerInfo
        The layers of the original.
    """
    plans = plan_of(model), plan_of(like)
    differing = tuple(
        f"{path}." if path else ""
        for layer in layers
        if len({_decision(plan, layer.name) for plan in plans}) > 1
        for path in layer.paths
    )
    one, other = (plan.narrowing.removed() for plan in plans)
    differing += tuple(name for name in {**one, **other} if one.get(name) != other.get(name))
    state, shapes = own_state(like), {name: tensor.shape for name, tensor in own_state(model).items()}
    same = {
        name: tensor
        for name, tensor in state.items()
        if shapes.get(name) == tensor.shape and not name.startswith(differing)
    }
    load_state_(model, same)


def _decision(plan: Plan, name: str) -> str:
    """Return what a plan does with a layer, without its reasons and predictions."""
    choice = plan.layers.get(name, Choice())
    return repr((choice.method, choice.ranks, sorted(choice.options.items()), choice.gauge))
