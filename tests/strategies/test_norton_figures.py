"""The complexity of NORTON's published networks (Pham, Zniyed & Nguyen 2025), with the conventions behind each figure.

Widths follow the authors' public code: a layer of width n with ratio r keeps ``int(n * (1 - r))`` channels.

- The lists of ratios of ResNets hold those of the first convolution, of the outputs of all stages but the last, and of
  the inner width of every block. The outputs of the last stage are whole. Where two stages of a CIFAR ResNet differ in
  width, the shortcut pads with zeros or crops, so that no two stages share channels.
- Every 3x3 convolution is factored at the same rank, the first one too, even where that makes it larger; 1x1 and 7x7
  convolutions stay dense.
- MACs are those of convolutions and linear layers. Published figures are higher, because batch norms and activations
  are counted as well. Parameters include batch norms. Those of VGG-16 leave out the biases of factored convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import rankfold as rf
from rankfold.cost import Pricing
from rankfold.inventory import inspect
from rankfold.records import Choice, Cost, Plan


def kept(width: int, ratio: float) -> int:
    return int(width * (1 - ratio))


class Block(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return (y + pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))).relu()


class CifarResNet(nn.Module):
    def __init__(self, ratios: Sequence[float]) -> None:
        super().__init__()
        first, stages, inner = ratios[0], [*ratios[1:3], 0.0], ratios[3:]
        n = len(inner) // 3
        widths = [kept(16, first)] + [kept(16 * 2**s, stages[s]) for s in range(3) for _ in range(n)]
        middle = [kept(16 * 2 ** (b // n), ratio) for b, ratio in enumerate(inner)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        strides = [2 if b in (n, 2 * n) else 1 for b in range(3 * n)]
        self.blocks = nn.Sequential(*(Block(widths[b], middle[b], widths[b + 1], strides[b]) for b in range(3 * n)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def vgg16(ratios: Sequence[float]) -> nn.Module:
    layers, inputs, number = list[nn.Module](), 3, 0
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        outputs = kept(width, ratios[number])
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs, number = outputs, number + 1
    head = [nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), *head)


class Grow(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.bn(x).relu())], 1)


def densenet40(ratios: Sequence[float]) -> nn.Module:
    """The first ratio is that of the first convolution, which the authors' code does not apply."""
    layers, width, number = list[nn.Module]([nn.Conv2d(3, 24, 3, padding=1, bias=False)]), 24, 1
    for block in range(3):
        for _ in range(12):
            layers.append(Grow(width, kept(12, ratios[number])))
            width, number = width + kept(12, ratios[number]), number + 1
        if block < 2:
            outputs = kept(width, ratios[number])
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, outputs, 1, bias=False), nn.AvgPool2d(2)]
            width, number = outputs, number + 1
    return nn.Sequential(
        *layers, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        down = [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(down if first else []))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def resnet50(ratios: Sequence[float]) -> nn.Module:
    stages, inner = [*ratios[1:4], 0.0], ratios[4:]
    width = kept(64, ratios[0])
    blocks = list[nn.Module]()
    for stage, count in enumerate((3, 4, 6, 3)):
        outputs = kept(256 * 2**stage, stages[stage])
        for number in range(count):
            middle = kept(64 * 2**stage, inner[len(blocks)])
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(Bottleneck(width, middle, outputs, stride, first=number == 0))
            width = outputs
    stem = [nn.Conv2d(3, kept(64, ratios[0]), 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(kept(64, ratios[0]))]
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(*stem, nn.ReLU(), pool, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def complexity(model: nn.Module, size: int, rank: int | None) -> Cost:
    """Return the cost with every 3x3 convolution factored; nothing is decomposed."""
    inventory = inspect(model.eval(), torch.zeros(1, 3, size, size))
    factored = {
        layer.name: Choice(method="filterwise_cp", ranks=(rank,))
        for layer in inventory
        if rank is not None and layer.kernel == (3, 3)
    }
    return Pricing.of(inventory).plan_cost(Plan(layers=factored))


@pytest.mark.parametrize(
    ("ratios", "rank", "params", "macs"),
    [
        ([0.0] * 30, None, 853_018, 125_485_696),
        ([0.0] + [0.18] * 29, 7, 588_387, 92_014_464),
        ([0.0] + [0.12] * 2 + [0.4] * 27, 7, 447_830, 72_032_768),
        ([0.0] * 30, 2, 217_610, 35_922_560),
        ([0.0] + [0.18] * 29, 1, 87_633, 13_145_472),
    ],
    ids=["dense", "a", "b", "c", "d"],
)
def test_resnet56(ratios: list[float], rank: int | None, params: int, macs: int) -> None:
    """Published: 853.0 k and 125.49 M dense; 588 k and 92.0 M, 448 k and 72.0 M, 218 k and 35.9 M, 88 k and 13.2 M."""
    cost = complexity(CifarResNet(ratios), 32, rank)
    assert (cost.params, cost.macs) == (params, macs)


def test_vgg16() -> None:
    """Published: 149,648 parameters."""
    model = vgg16([0.6] * 6 + [0.8] * 7)
    biases = sum(conv.out_channels for conv in model.modules() if isinstance(conv, nn.Conv2d))
    assert complexity(model, 32, 1).params - biases == 149_648
    assert biases == 1019


def test_densenet40() -> None:
    """Published: 745,468 parameters; the dense network has 1,059,298."""
    assert complexity(densenet40([0.0] * 39), 32, None).params == 1_059_298
    assert complexity(densenet40([0.0] + [0.08] * 6 + [0.09] * 6 + [0.08] * 26), 32, 8).params == 745_468


def test_resnet50() -> None:
    """Published: 5,885,736 parameters; the dense network has 25,557,032."""
    assert complexity(resnet50([0.0] * 20), 64, None).params == 25_557_032
    assert complexity(resnet50([0.0] + [0.1] * 2 + [0.4] * 5 + [0.75] * 12), 64, 1).params == 5_885_736


def narrowed(model: nn.Module, size: int, rank: int, ratios: dict[str, float]) -> Cost:
    """Return the cost of a dense network whose channels are removed, with every 3x3 convolution factored."""
    x = torch.zeros(1, 3, size, size)
    plan = rf.plan(model.eval(), x, strategy=rf.strategies.Prune(ratio=ratios, criterion="l1"))
    inventory = inspect(model, x)
    factored = {
        layer.name: Choice(method="filterwise_cp", ranks=(rank,)) for layer in inventory if layer.kernel == (3, 3)
    }
    return Pricing.of(inventory).plan_cost(plan.override(factored))


def named(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_vgg16_is_reached_from_the_dense_network() -> None:
    model = vgg16([0.0] * 13)
    ratios = dict(zip(named(model, nn.Conv2d), [0.6] * 6 + [0.8] * 7, strict=True))
    assert narrowed(model, 32, 1, ratios).params - 1019 == 149_648


def test_densenet40_is_reached_from_the_dense_network() -> None:
    """The ratios of the transitions are shares of their narrow inputs: 138 of 168 and 248 of 312 channels stay."""
    model = densenet40([0.0] * 39)
    ratios = dict(zip(named(model, nn.Conv2d), [0.0] + [0.08] * 6 + [0.09] * 6 + [0.08] * 26, strict=True))
    first, second = (name for name, conv in model.named_modules() if getattr(conv, "kernel_size", 0) == (1, 1))
    ratios |= {first: 1 - 138 / 168, second: 1 - 248 / 312}
    assert narrowed(model, 32, 8, ratios).params == 745_468


def test_resnet50_is_reached_from_the_dense_network() -> None:
    """Here the shortcuts of a stage couple its outputs, as in the authors' network."""
    model = resnet50([0.0] * 20)
    stages = [0.1] * 3 + [0.1] * 4 + [0.4] * 6 + [0.0] * 3
    ratios = dict[str, float]()
    for block, stage, inner in zip(named(model, Bottleneck), stages, [0.4] * 4 + [0.75] * 12, strict=True):
        ratios |= {f"{block}.body.0": inner, f"{block}.body.3": inner, f"{block}.body.6": stage}
    assert narrowed(model, 64, 1, ratios).params == 5_885_736
