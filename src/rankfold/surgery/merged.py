"""Factored layers that run as one dense layer for a while: the same function of the same factors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rankfold.inventory.kinds import STOCK, is_observed
from rankfold.surgery.apply import factored_layers
from rankfold.surgery.factored import Bias, Factored, Reshape
from rankfold.surgery.gauged import Gauged
from rankfold.surgery.stock import uninitialized


@contextmanager
def merged(model: nn.Module) -> Iterator[list[str]]:
    """Run each factored layer as the layer that it replaced, with the product of the factors as its weight.

    Outputs and gradients of the factors are the same up to rounding. The dense weight is computed at every call. A
    layer whose stages have hooks, parametrizations, a forward of their own or other classes than stock ones (adapters,
    for example) runs as before.

    Yields
    ------
    list of str
        The layers that run as one.
    """
    layers = {name: layer for name, layer in factored_layers(model).items() if _mergeable(layer)}
    # An attribute of the instance goes before the method of its class, so hooks of the layer still run.
    for layer in layers.values():
        stock = uninitialized(layer.info, bias=layer.bias is not None, device=torch.device("meta"))
        layer.forward = partial(_forward, layer, stock)
    try:
        yield list(layers)
    finally:
        for layer in layers.values():
            del layer.forward


def _forward(layer: Factored, stock: nn.Module, input: Tensor) -> Tensor:
    tensors = {"weight": layer.dense_weight()}
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    return functional_call(stock, tensors, (input,))


def _mergeable(layer: Factored) -> bool:
    inner = (module for module in layer.modules() if module is not layer)
    return "forward" not in vars(layer) and all(map(_runs_as_built, inner))


def _runs_as_built(module: nn.Module) -> bool:
    """Whether a module inside of a factored layer is one that `build` makes, and nothing notices if it does not run."""
    built = type(module) in STOCK or isinstance(module, Factored | Gauged | Reshape | Bias)
    return built and not (is_observed(module) or module._backward_hooks or module._backward_pre_hooks)
