from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold import zoo
from rankfold.zoo.networks import CifarResNet, PadShortcut

# Parameters: LeCun et al. 1998 (dense second convolution), He et al. 2016 table 6 (0.27 M, 0.46 M,
# 0.85 M), and the sum over VGG's configuration D with BatchNorm and a head of 512.
SIZES = {
    "lenet5_mnist5k": 61_706,
    "resnet20_cifar10": 269_722,
    "resnet32_cifar10": 464_154,
    "resnet56_cifar10": 853_018,
    "vgg16_bn_cifar10": 14_728_266,
}


def test_every_network_has_its_size_here() -> None:
    assert set(SIZES) == set(zoo.names())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_size_and_output(name: str) -> None:
    net = zoo.create(name, seed=0)
    info = zoo.entry(name)
    x = zoo.example_input(name)
    assert isinstance(x, torch.Tensor)
    assert not net.training
    assert sum(p.numel() for p in net.parameters()) == SIZES[name]
    assert f"{SIZES[name]:,}" in info.summary
    assert x.shape == (1, *(info.input_shape or ()))
    y = net(x)
    assert y.shape == (1, info.num_classes)
    assert torch.isfinite(y).all()
    assert len(info.mean or ()) == len(info.std or ()) == x.shape[1]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_number_of_classes(name: str) -> None:
    net = zoo.create(name, num_classes=3, seed=0)
    assert net(zoo.example_input(name)).shape == (1, 3)


def test_resnet_keys_are_those_of_the_public_weights() -> None:
    parts = {
        key.rpartition(".")[0]
        for key in zoo.create("resnet20_cifar10", seed=0).state_dict()
        if not key.endswith("num_batches_tracked")
    }
    blocks = {f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)}
    inner = {f"{block}.{part}" for block in blocks for part in ("conv1", "bn1", "conv2", "bn2")}
    assert parts == {"conv1", "bn1", "linear"} | inner


def test_pad_shortcut_by_hand(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 5, 5, generator=generator)
    y = PadShortcut(4)(x)
    assert y.shape == (2, 7, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(y[:, 2:5, row, column], x[:, :, 2 * row, 2 * column])
    assert y[:, :2].eq(0).all()
    assert y[:, 5:].eq(0).all()
    assert not torch.equal(y[:, 2:5], x[:, :, 1:4, 1:4])


@pytest.mark.parametrize("depth", [2, 18, 21, 0, -4])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=f"6n \\+ 2. Got {depth}"):
        CifarResNet(depth)


def test_depth_counts_the_layers_with_weights() -> None:
    net = CifarResNet(32)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 32
