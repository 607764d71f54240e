from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import zoo
from rankfold.errors import MissingExtra
from rankfold.zoo.networks import CifarResNet, PadShortcut

# Parameters. Sources: LeCun et al. 1998 (dense second convolution); He et al. 2016 table 6 (0.27 M, 0.46 M, 0.85 M);
# sums over the configurations of VGG and AlexNet; Cireşan et al. 2012 (1.54 M weights); Maturana & Scherer 2015
# (921,736 for 40 classes). torchvision's networks differ from the published sizes by stem and number of classes.
SIZES = {
    "alexnet_cifar10": 23_272_266,
    "alexnet_cifar100": 23_640_996,
    "densenet121_cifar10": 6_956_426,
    "densenet121_cifar100": 7_048_676,
    "googlenet_cifar10": 5_602_474,
    "googlenet_cifar100": 5_694_724,
    "lenet5_fashionmnist": 61_706,
    "lenet5_half_fashionmnist": 15_738,
    "lenet5_half_mnist": 15_738,
    "lenet5_half_mnist5k": 15_738,
    "lenet5_mnist": 61_706,
    "lenet5_mnist5k": 61_706,
    "m5_speechcommands": 571_939,
    "resnet18_cifar10": 11_173_962,
    "resnet18_cifar100": 11_220_132,
    "resnet20_cifar10": 269_722,
    "resnet20_cifar100": 275_572,
    "resnet32_cifar10": 464_154,
    "resnet32_cifar100": 470_004,
    "resnet34_cifar10": 21_282_122,
    "resnet34_cifar100": 21_328_292,
    "resnet50_cifar10": 23_520_842,
    "resnet50_cifar100": 23_705_252,
    "resnet56_cifar10": 853_018,
    "resnet56_cifar100": 858_868,
    "squeezenet_cifar10": 727_626,
    "squeezenet_cifar100": 773_796,
    "traffic_gtsrb": 1_543_443,
    "vgg11_cifar10": 28_144_010,
    "vgg11_cifar100": 28_512_740,
    "vgg16_bn_cifar10": 14_728_266,
    "vgg16_bn_cifar100": 14_774_436,
    "vgg16_cifar10": 33_638_218,
    "vgg16_cifar100": 34_006_948,
    "vgg19_cifar10": 38_947_914,
    "vgg19_cifar100": 39_316_644,
    "voxnet_modelnet10": 917_866,
    "voxnet_modelnet40": 921_736,
}
FROM_TORCHVISION = ("resnet18", "resnet34", "resnet50", "googlenet", "squeezenet", "densenet121")
# Convolutions and linear layers, as the papers count them; ResNets have further ones in three or four shortcuts, and
# GoogLeNet's 22 layers consist of 58.
LAYERS = {
    "alexnet_cifar10": 8,
    "vgg11_cifar10": 11,
    "vgg16_cifar10": 16,
    "vgg19_cifar10": 19,
    "traffic_gtsrb": 5,
    "voxnet_modelnet10": 4,
    "m5_speechcommands": 5,
    "resnet18_cifar10": 18 + 3,
    "resnet34_cifar10": 34 + 3,
    "resnet50_cifar10": 50 + 4,
    "googlenet_cifar10": 58,
    "squeezenet_cifar10": 26,
    "densenet121_cifar10": 121,
}
# One network of each family, and a small part of it.
PARTS = {
    "vgg11_cifar10": "features.[0-3]",
    "traffic_gtsrb": "*",
    "voxnet_modelnet10": "*",
    "m5_speechcommands": "features.[0-8]",
    "resnet18_cifar10": "layer1.*",
    "googlenet_cifar10": "inception3a.*",
    "squeezenet_cifar10": "features.[3-7].*",
    "densenet121_cifar10": "features.denseblock1.*",
}


def skip_without_torchvision(name: str) -> None:
    if name.partition("_")[0] in FROM_TORCHVISION:
        pytest.importorskip("torchvision")


def test_every_network_has_its_size_here() -> None:
    assert set(SIZES) == set(zoo.names())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_size_and_output(name: str) -> None:
    skip_without_torchvision(name)
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
    skip_without_torchvision(name)
    with torch.device("meta"):
        net = zoo.create(name, num_classes=3, seed=0)
    assert net(zoo.example_input(name).to("meta")).shape == (1, 3)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_number_of_layers(name: str) -> None:
    skip_without_torchvision(name)
    with torch.device("meta"):
        net = zoo.create(name, seed=0)
    assert sum(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) for m in net.modules()) == LAYERS[name]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_family_can_be_inspected_planned_and_compressed(name: str) -> None:
    skip_without_torchvision(name)
    net, x = zoo.create(name, seed=0), zoo.example_input(name)
    assert len(rf.inspect(net, x).layers) == LAYERS[name]
    plan = rf.plan(net, x, strategy="uniform", methods=("svd", "tucker"), include=[PARTS[name]])
    assert len(plan.factored) >= 2
    small = rf.apply(net, plan)
    assert small(x).shape == net(x).shape
    assert sum(p.numel() for p in small.parameters()) < SIZES[name]


def test_cifar_stem_keeps_the_resolution() -> None:
    pytest.importorskip("torchvision")
    sizes: dict[str, torch.Size] = {}
    for name, block in {
        "resnet18": "layer1",
        "googlenet": "inception3a",
        "squeezenet": "features.3",
        "densenet121": "features.denseblock1",
    }.items():
        with torch.device("meta"):
            net = zoo.create(f"{name}_cifar10", seed=0)
        net.get_submodule(block).register_forward_hook(lambda _, __, out, name=name: sizes.update({name: out.shape}))
        net(torch.zeros(1, 3, 32, 32, device="meta"))
    assert {name: tuple(size[2:]) for name, size in sizes.items()} == dict.fromkeys(sizes, (32, 32))
    assert len(sizes) == 4


def test_facts_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert zoo.entry("resnet18_cifar10").data == "cifar10"
    with pytest.raises(MissingExtra, match=r"torchvision.*rankfold\[vision\]"):
        zoo.create("resnet18_cifar10")


def test_m5_takes_recordings_of_any_length() -> None:
    net = zoo.create("m5_speechcommands", seed=0)
    assert net(torch.zeros(2, 1, 32_000)).shape == (2, 35)


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
