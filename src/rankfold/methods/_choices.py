"""One layer's choice in a plan: whether it can be carried out, and the stages it leads to."""

from __future__ import annotations

from rankfold.errors import GaugeError
from rankfold.methods.contract import Method, check_ranks, check_supported, get
from rankfold.records import Blueprint, Choice, LayerInfo, Ranks, gauge_blueprint, gauge_obstacle


def check_gauge(method: Method, layer: LayerInfo, ranks: Ranks) -> None:
    """Raise `GaugeError`, with the reason, if no bond of the factored layer can be gauged."""
    reason = gauge_obstacle(method.blueprint(layer, ranks))
    if reason is not None:
        raise GaugeError(
            f"{method.name!r} with ranks {list(ranks)} on {layer.title} cannot be gauged: {reason}. "
            "Leave 'gauge' out for this layer."
        )


def check_choice(layer: LayerInfo, choice: Choice) -> None:
    """Raise the error that says why a choice (not one to keep the layer) cannot be carried out; see the other checks.

    Raises
    ------
    UnknownNameError, ConfigError
        If the method or an option is unknown.
    UnsupportedLayer, RankError, GaugeError
        If the method, the ranks or the gauge do not fit the layer.
    """
    method = get(choice.method or "", choice.options)
    check_supported(method, layer)
    check_ranks(method, layer, choice.ranks)
    if choice.gauge:
        check_gauge(method, layer, choice.ranks)


def chosen_blueprint(layer: LayerInfo, choice: Choice) -> Blueprint:
    """Return the stages of a layer that is factored as a choice says, gauged if it says so."""
    blueprint = get(choice.method or "", choice.options).blueprint(layer, choice.ranks)
    return gauge_blueprint(blueprint) if choice.gauge else blueprint
