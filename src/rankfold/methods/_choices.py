"""Checks and stages of one layer's choice in a plan."""

from __future__ import annotations

from rankfold.errors import GaugeError
from rankfold.methods.contract import check_ranks, check_supported, get
from rankfold.records import Blueprint, Choice, LayerInfo, gauge_blueprint, gauge_obstacle


def check_choice(layer: LayerInfo, choice: Choice) -> None:
    """Check a choice that factors a layer.

    Raises
    ------
    UnknownNameError, ConfigError
        If the method or an option is unknown or invalid.
    UnsupportedLayer, RankError, GaugeError
        If the layer does not allow the method, the ranks or the gauge.
    """
    method = get(choice.method or "", choice.options)
    check_supported(method, layer)
    check_ranks(method, layer, choice.ranks)
    obstacle = gauge_obstacle(method.blueprint(layer, choice.ranks)) if choice.gauge else None
    if obstacle is not None:
        raise GaugeError(
            f"{method.name!r} with ranks {list(choice.ranks)} on {layer.title} cannot be gauged: {obstacle}. "
            "Leave gauge out for this layer."
        )


def chosen_blueprint(layer: LayerInfo, choice: Choice) -> Blueprint:
    """Return the stages of a layer after a choice has been applied."""
    blueprint = get(choice.method or "", choice.options).blueprint(layer, choice.ranks)
    return gauge_blueprint(blueprint) if choice.gauge else blueprint
