"""Channel groups: what is coupled leaves together, and a narrowed network computes what a masked one does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import rankfold as rf
from rankfold.cost import Pricing
from rankfold.cost.narrowing import narrowed_inventory
from rankfold.inventory import inspect
from rankfold.pruning import channel_groups
from rankfold.records import ChannelGroups, Choice, Narrowing, Plan
from rankfold.surgery.narrowing import narrow_


def conv_bn(ins: int, outs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(ins, outs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outs))


class Plain(nn.Module):
    """Convolutions, a flatten, and a head of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.PReLU(6), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Block(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.one, self.two = conv_bn(ins, outs), conv_bn(outs, outs)
        self.shortcut = conv_bn(ins, outs, 1) if ins != outs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.two(functional.relu(self.one(x))) + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 8), nn.Sequential(Block(8, 8), Block(8, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))


class Dense(nn.Module):
    """A dense block: every layer sees all outputs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), conv_bn(6 + 4 * i, 4)) for i in range(3)
        )
        self.norm, self.fc = nn.BatchNorm2d(18), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(functional.relu(self.norm(torch.cat(features, 1))).mean((2, 3)))


class Mobile(nn.Module):
    """An inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv_bn(3, 6), conv_bn(6, 16, 1)
        self.depthwise = conv_bn(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.fc = conv_bn(16, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem(x))
        y = functional.relu6(self.depthwise(functional.relu6(self.expand(x))))
        y = y * torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))))
        return self.fc((x + self.project(y)).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolutions, with many groups and with few, and a group normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.many = conv_bn(3, 32, 1), conv_bn(32, 32, groups=8)
        self.few = nn.Conv2d(32, 12, 3, padding=1, groups=2)
        self.mix, self.norm = nn.Conv2d(12, 12, 1), nn.GroupNorm(4, 12)
        self.next, self.whole, self.last = nn.Conv2d(12, 12, 1), nn.GroupNorm(2, 12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.few(functional.relu(self.many(functional.relu(self.one(x))))))
        return self.last(functional.relu(self.whole(self.next(functional.relu(self.norm(self.mix(x)))))))


class ConvNeXt(nn.Module):
    """A block with a layer scale, layer norms over the last dimension, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)
        self.gamma = nn.Parameter(torch.full((8,), 1e-6))
        self.head_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(functional.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean((2, 3))))


class UNet(nn.Module):
    """Transposed convolutions and a skip connection by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 2, stride=2)
        self.up, self.out = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = functional.relu(self.down1(x))
        return self.out(torch.cat([functional.relu(self.up(functional.relu(self.down2(one)))), one], 1))


class Line(nn.Module):
    """One- and three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 8, 3, padding=1)
        self.cube, self.last = nn.Conv3d(8, 5, (1, 1, 3)), nn.Linear(5 * 62, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.two(functional.relu(self.one(x.flatten(2)))))
        return self.last(functional.relu(self.cube(x[:, :, None, None])).flatten(1))


class Encoder(nn.Module):
    """A transformer layer: only the width of its MLP can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.norm1, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2).mT)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.down(functional.gelu(self.up(self.norm2(x))))).mean(1))


class Shuffled(nn.Module):
    """Channels are shuffled by a view with fixed sizes, so that widths must stay there."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
        return self.three(functional.relu(self.two(y)))


class Meeting(nn.Module):
    """Two halves of one layer's outputs meet in a sum, so that they leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.wide(x).chunk(2, 1)
        return self.last(functional.relu(one) + torch.sigmoid(other))


class Tied(nn.Module):
    """Two layers share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.one, self.other = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.other.weight = self.one.weight
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.start(x))
        return self.last(functional.relu(self.other(functional.relu(self.one(x)) + x)) + x)


class Neck(nn.Module):
    """A block of a detection network: two branches of one input, upsampled and concatenated with an earlier layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_bn(3, 6), conv_bn(6, 10, stride=2)
        self.one, self.other = conv_bn(10, 4, 1), conv_bn(10, 4, 1)
        self.inner, self.outer = conv_bn(4, 4, 1), conv_bn(4, 4)
        self.joined, self.head = conv_bn(8, 8, 1), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = functional.silu(self.stem(x))
        x = functional.silu(self.down(early))
        one = functional.silu(self.one(x))
        one = one + functional.silu(self.outer(functional.silu(self.inner(one))))
        x = functional.silu(self.joined(torch.cat([one, functional.silu(self.other(x))], 1)))
        return self.head(torch.cat([functional.interpolate(x, scale_factor=2.0), early], 1))


NETWORKS = [Plain, Residual, Dense, Mobile, Grouped, ConvNeXt, UNet, Line, Encoder, Shuffled, Meeting, Tied, Neck]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def built(network: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network whose parameters and statistics all matter."""
    torch.manual_seed(seed)
    model = network().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


@contextmanager
def masked(model: nn.Module, narrowing: Narrowing) -> Iterator[None]:
    """Set removed channels to zero where layers read them: after BatchNorm, activation and whatever else follows."""
    hooks = []
    for name, removed in narrowing.removed().items():
        if "inputs" in removed:
            module = model.get_submodule(name)
            dim = -1 if isinstance(module, nn.Linear) else 1
            index = torch.tensor(sorted(removed["inputs"]))
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, dim=dim, index=index: (args[0].index_fill(dim, index, 0.0),)
                )
            )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


MODELS = {network: built(network) for network in NETWORKS}
_groups: dict[type[nn.Module], ChannelGroups] = {}
STATISTICS = (ConvNeXt, Grouped)  # their layer and group norms see how many channels there are


def groups_of(network: type[nn.Module]) -> ChannelGroups:
    if network not in _groups:
        _groups[network] = channel_groups(MODELS[network], X)
    return _groups[network]


WIDTHS = {
    Plain: {"body.0.0": 8, "body.2.0": 6, "head.1": 10},
    Residual: {"stem.0": 8, "blocks.0.one.0": 8, "blocks.1.one.0": 12, "blocks.1.two.0": 12},
    Dense: {"stem.0": 6, "layers.0.2.0": 4, "layers.1.2.0": 4, "layers.2.2.0": 4},
    Mobile: {"stem.0": 6, "expand.0": 16, "squeeze": 4},
    Grouped: {"one.0": 4, "few": 6, "mix": 4, "next": 6},
    ConvNeXt: {"stem": 8, "up": 20},
    UNet: {"down1": 6, "down2": 8, "up": 6},
    Line: {"one": 6, "two": 8, "cube": 5},
    Encoder: {"up": 32},
    Shuffled: {"two": 8},
    Meeting: {"wide": 6},
    Tied: {"start": 8},
    Neck: {"stem.0": 6, "down.0": 10, "one.0": 4, "other.0": 4, "inner.0": 4, "joined.0": 8},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_groups_and_widths(network: type[nn.Module]) -> None:
    groups = groups_of(network)
    assert {group.name: group.width for group in groups} == WIDTHS[network]
    layers = {layer.name for layer in inspect(MODELS[network], X)}
    computed = {axis.name for group in groups for axis in group.on("outputs")}
    assert layers <= computed | set(groups.fixed)


@st.composite
def narrowings(draw: Any, groups: ChannelGroups) -> Narrowing:
    removed = {}
    for group in groups:
        ids = draw(st.sets(st.integers(0, group.width - 1), max_size=group.width - 1))
        removed[group.name] = ids
    return groups.narrowing(removed)


@pytest.mark.parametrize("network", [network for network in NETWORKS if network not in STATISTICS])
@settings(max_examples=6)
@given(data=st.data())
def test_a_narrowed_network_computes_what_a_masked_one_does(network: type[nn.Module], data: Any) -> None:
    narrowing = data.draw(narrowings(groups_of(network)))
    model = copy.deepcopy(MODELS[network])
    with masked(model, narrowing), torch.no_grad():
        expected = model(X)
    narrow_(model, narrowing)
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=6)
@given(data=st.data())
def test_costs_are_predicted_exactly(network: type[nn.Module], data: Any) -> None:
    narrowing = data.draw(narrowings(groups_of(network)))
    model = copy.deepcopy(MODELS[network])
    before = inspect(model, X)
    predicted = narrowed_inventory(before, narrowing)
    restore = narrow_(model, narrowing)
    after = inspect(model, X)
    assert (predicted.total, predicted.costs) == (after.total, after.costs)
    assert (predicted.outside, predicted.modules) == (after.outside, after.modules)
    assert [(o.name, o.params) for o in predicted.others] == [(o.name, o.params) for o in after.others]
    assert [layer.fingerprint for layer in predicted] == [layer.fingerprint for layer in after]
    model(X).sum().backward()
    restore()
    assert inspect(model, X) == before


@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_and_factored_networks_survive_the_artifact(network: type[nn.Module], tmp_path: Path) -> None:
    model, groups = MODELS[network], groups_of(network)
    inventory = inspect(model, X)
    narrowing = groups.narrowing({group.name: range(group.width // 2) for group in groups})
    narrow = narrowed_inventory(inventory, narrowing)
    low = Choice(method="svd", ranks=(1,))
    layers = {layer.name: Choice(reason=layer.skip) if layer.skip else low for layer in narrow}
    plan = Plan(layers=layers, fingerprint={layer.name: layer.fingerprint for layer in inventory}, narrowing=narrowing)
    result = rf.realize(model, X, plan, output=tmp_path / "small")
    assert result.report.after == Pricing.of_plan(inventory, plan).plan_cost(plan)
    loaded = rf.load(tmp_path / "small", built(network, seed=1), example_input=X)
    torch.testing.assert_close(loaded(X), result.model(X), rtol=0, atol=0)
    loaded(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
