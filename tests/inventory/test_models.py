"""Whole networks of torchvision: everything is listed, counted once and used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rankfold.inventory import inspect, layer_weight, static_inventory
from rankfold.records import Cost


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def googlenet() -> nn.Module:
    from torchvision.models import googlenet

    return googlenet(num_classes=10, init_weights=False)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=10, width_mult=0.25)


@pytest.mark.parametrize(
    ("make", "size", "layers", "compressible"),
    [
        (resnet18, 32, 21, 21),
        (googlenet, 64, 64, 64),
        (vit, 32, 14, 14),
        (mobilenet, 32, 53, 36),
    ],
)
def test_a_network(make: Callable[[], nn.Module], size: int, layers: int, compressible: int) -> None:
    model = make()
    inventory = inspect(model, torch.randn(1, 3, size, size))
    assert (len(inventory.layers), len(inventory.compressible)) == (layers, compressible)
    listed = sum(inventory.costs.values(), Cost())
    others = sum(other.params for other in inventory.others)
    assert listed.params + others == inventory.total.params
    assert inventory.total.params == sum(p.numel() for p in model.parameters())
    assert inventory.total.fm == listed.fm
    if make is vit:  # the products of queries, keys and values belong to no layer
        assert inventory.total.macs > listed.macs
    else:
        assert inventory.total.macs == listed.macs
    for layer in inventory:
        assert tuple(layer_weight(model, layer.name).shape) == layer.weight_shape
    assert [layer.static() for layer in inventory] == [layer.static() for layer in static_inventory(model)]


def test_auxiliary_heads_are_not_called_but_compressible() -> None:
    inventory = inspect(googlenet(), torch.randn(1, 3, 64, 64))
    unused = [layer for layer in inventory if not layer.calls]
    assert {layer.name.split(".")[0] for layer in unused} == {"aux1", "aux2"}
    assert len(unused) == 6
    assert {layer.note for layer in unused} == {"not called on the example input; factored by its weight alone"}
    assert all(inventory.costs[layer.name].macs == 0 for layer in unused)
