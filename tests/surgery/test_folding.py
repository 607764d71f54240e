"""Batch norms are folded into the layers before them, exactly, and only where nothing else would change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ConfigError, ModelError
from rankfold.records import Choice

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 10, 10, generator=GENERATOR)


def trained(model: nn.Module) -> nn.Module:
    """Give the batch norms of a model statistics and weights as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
            module.running_mean.normal_(generator=GENERATOR)
            module.running_var.uniform_(0.5, 3, generator=GENERATOR)
            if module.affine:
                nn.init.normal_(module.weight, generator=GENERATOR)
                nn.init.normal_(module.bias, generator=GENERATOR)
    return model.eval()


class Every(nn.Module):
    """A batch norm after every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.n1 = nn.Conv2d(4, 16, 3, padding="same"), nn.BatchNorm2d(16)
        self.kept, self.n2 = nn.Conv2d(16, 16, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(16, affine=False)
        self.up, self.n3 = nn.ConvTranspose2d(16, 12, 3, stride=2, groups=2), nn.BatchNorm2d(12)
        self.line, self.n4 = nn.Conv1d(12, 20, 3, padding=1, bias=False), nn.BatchNorm1d(20)
        self.solid, self.n5 = nn.Conv3d(4, 12, 3, padding=1), nn.BatchNorm3d(12)
        self.linear, self.n6 = nn.Linear(32, 20), nn.BatchNorm1d(20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.kept(self.n1(self.conv(x)).relu())).relu()
        y = self.n3(self.up(y)).relu()
        y = self.n4(self.line(y.flatten(2))).relu().mean(2)
        z = self.n5(self.solid(x.unflatten(3, (2, 5)))).relu().mean((2, 3, 4))
        return self.n6(self.linear(torch.cat([y, z], 1)))


FACTORED = {
    "conv": Choice(method="tucker", ranks=(6, 3)), "up": Choice(method="svd", ranks=(4,)),
    "line": Choice(method="cp", ranks=(6,)), "solid": Choice(method="tt", ranks=(3, 4, 5, 6)),
    "linear": Choice(method="qr", ranks=(5,)),
}  # fmt: skip


class Kept(nn.Module):
    """Batch norms that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.n1 = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.after, self.n2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.twice, self.n3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.batch, self.n4 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.hooked, self.n5 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.last, self.n6 = nn.Linear(8, 9), nn.BatchNorm1d(10)  # over the second of three dimensions

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x)
        y = y + self.n1(y)  # read twice
        y = self.n2(self.after(y).relu())  # not directly after
        y = self.n3(self.twice(self.twice(y)))  # used twice
        y = self.n5(self.hooked(self.n4(self.batch(y))))
        return self.n6(self.last(y.flatten(2)[:, :, :10].transpose(1, 2)))


def folded(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Identity)}


@torch.no_grad()
def test_every_kind_of_layer() -> None:
    net = trained(Every())
    small = rf.apply(net, rf.Plan(layers=FACTORED))
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    fast = rf.strip(small, fold_batchnorm=True, example_input=X)
    assert folded(fast) == {"n1", "n2", "n3", "n4", "n5", "n6"}
    expected = small(X)
    assert torch.dist(fast(X), expected) < 1e-5 * expected.norm()
    assert torch.dist(fast(X[:1] + 1), small(X[:1] + 1)) < 1e-5 * small(X[:1] + 1).norm()
    assert all(torch.equal(before[key], tensor) for key, tensor in small.state_dict().items())
    assert sum(p.numel() for p in fast.parameters()) < sum(p.numel() for p in small.parameters())
    assert folded(rf.strip(small)) == set()


@torch.no_grad()
def test_a_lost_statistic_would_be_noticed() -> None:
    """The negative control of the tolerance."""
    net = trained(Every())
    expected = net(X)
    net.n3.running_var.mul_(1.02)
    assert torch.dist(net(X), expected) > 1e-5 * expected.norm()


@torch.no_grad()
def test_batch_norms_that_must_stay() -> None:
    net = trained(Kept())
    net.hooked.register_forward_hook(lambda module, args, output: output * 2)
    small: Any = rf.apply(net, rf.Plan(layers={"after": Choice(method="svd", ranks=(3,))}))
    fast = rf.strip(small, fold_batchnorm=True, example_input=X)
    assert folded(fast) == set()
    torch.testing.assert_close(fast(X), small(X))


def test_bad_input() -> None:
    small = rf.apply(trained(Every()), rf.Plan(layers=FACTORED))
    with pytest.raises(ConfigError, match="fold_batchnorm=True needs example_input"):
        rf.strip(small, fold_batchnorm=True)
    with pytest.raises(ModelError, match=r"Call model\.eval\(\) first"):
        rf.strip(small.train(), fold_batchnorm=True, example_input=X)
