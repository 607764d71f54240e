"""Weights by name: what the layer computes with, however it is stored, and nothing changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from rankfold.errors import NoMatchingLayer
from rankfold.inventory import inspect, layer_bias, layer_weight, static_inventory


def old_norm(name: str) -> Callable[[nn.Module], nn.Module]:
    def apply(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older functions are deprecated
            return getattr(torch.nn.utils, name)(module)

    return apply


def pruned(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", amount=0.5)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def symmetric(module: nn.Module) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(module, "weight", Symmetric())


NORMS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "weight_norm": (parametrizations.weight_norm, "weight_norm is folded into the factors"),
    "spectral_norm": (parametrizations.spectral_norm, "spectral_norm is folded into the factors"),
    "orthogonal": (parametrizations.orthogonal, "orthogonal is folded into the factors"),
    "own": (symmetric, "symmetric is folded into the factors"),
    "old_weight_norm": (old_norm("weight_norm"), "weight_norm is folded into the factors"),
    "old_spectral_norm": (old_norm("spectral_norm"), "spectral_norm is folded into the factors"),
    "pruned": (pruned, "the pruning mask is folded into the factors"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_the_effective_weight_is_what_the_layer_computes_with(norm: str, training: bool) -> None:
    apply, note = NORMS[norm]
    conv: Any = apply(nn.Conv2d(2, 2, 2))
    net = nn.Sequential(apply(nn.Linear(5, 5)), nn.ReLU(), conv).train(training)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(dict(net.state_dict()))
    weight, bias = layer_weight(net, "0"), layer_bias(net, "0")
    kernel = layer_weight(net, "2")
    assert weight.shape == (5, 5)
    assert not weight.requires_grad
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert all(module.training == training for module in net.modules())
    with torch.no_grad():
        net.eval()
        x, image = torch.randn(3, 5), torch.randn(1, 2, 4, 4)
        torch.testing.assert_close(net[0](x), functional.linear(x, weight, bias))
        torch.testing.assert_close(conv(image), functional.conv2d(image, kernel, conv.bias))
    assert [layer.note for layer in static_inventory(net)] == [note, note]
    assert all(layer.skip is None for layer in static_inventory(net))


@pytest.mark.parametrize("norm", NORMS)
def test_inspecting_a_normed_layer_leaves_it_as_it_was(norm: str) -> None:
    apply, note = NORMS[norm]
    net = nn.Sequential(apply(nn.Linear(5, 5)))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    computed = vars(net[0]).get("weight")
    inventory = inspect(net, torch.randn(2, 5))
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert vars(net[0]).get("weight") is computed
    (layer,) = inventory.layers
    assert layer.note == note
    assert layer.skip is None
    assert layer.type_name == "Linear"
    assert layer.calls[0].batch == 2
    assert inventory.others == ()
    assert inventory.total.params == sum(p.numel() for p in net.parameters())


def test_a_norm_does_advance_in_training() -> None:
    """The control of the tests above: reading the weight the ordinary way changes the model."""
    linear = parametrizations.spectral_norm(nn.Linear(5, 5))
    before = linear.get_buffer("parametrizations.weight.0._u").clone()
    _ = linear.weight
    assert not torch.equal(linear.get_buffer("parametrizations.weight.0._u"), before)


def test_an_unused_normed_layer_has_both_notes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = parametrizations.weight_norm(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert inspect(Net(), torch.zeros(1, 2)).layer("a").note == (
        "weight_norm is folded into the factors; not called on the example input; factored by its weight alone"
    )


def test_plain_weights_are_the_parameter_itself() -> None:
    first = nn.Linear(2, 3)
    net = nn.Sequential(first, nn.Linear(3, 2, bias=False))
    assert layer_weight(net, "0").data_ptr() == first.weight.data_ptr()
    assert not layer_weight(net, "0").requires_grad
    bias = layer_bias(net, "0")
    assert bias is not None
    assert torch.equal(bias, first.bias)
    assert layer_bias(net, "1") is None
    assert layer_weight(first, "").shape == (3, 2)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}, {"bias": False}])
def test_projections_of_an_attention(sizes: dict[str, Any]) -> None:
    attention: Any = nn.MultiheadAttention(4, 2, **sizes)
    net = nn.ModuleDict({"attention": attention})
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    layers = {layer.name: layer for layer in static_inventory(net)}
    assert list(layers) == [f"attention.{r}_proj" for r in ("q", "k", "v", "out")]
    for name, layer in layers.items():
        assert layer_weight(net, name).shape == layer.weight_shape
        assert (layer_bias(net, name) is not None) == layer.bias
    if sizes == {}:
        weights = [layer_weight(net, f"attention.{r}_proj") for r in "qkv"]
        assert torch.equal(torch.cat(weights), attention.in_proj_weight)
        biases = [layer_bias(net, f"attention.{r}_proj") for r in "qkv"]
        assert torch.equal(torch.cat([b for b in biases if b is not None]), attention.in_proj_bias)


def test_unknown_names_offer_the_nearest() -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "act": nn.ReLU()})
    with pytest.raises(NoMatchingLayer, match=r"no layer 'conf'\. Did you mean 'conv'"):
        layer_weight(net, "conf")
    with pytest.raises(NoMatchingLayer, match="ReLU has no weight"):
        layer_weight(net, "act")
    with pytest.raises(NoMatchingLayer):
        layer_weight(net, "conv.q_proj")
