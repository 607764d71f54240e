"""Layers that no calibration sample reaches: unknown, not harmless. They are named, and cut no harder than others."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.api.planning import UNREACHED
from rankfold.calibration import collect_moments
from rankfold.errors import RankfoldWarning
from rankfold.inventory import inspect

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts, self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 6)


class Mixture(Parts):
    """The router sends nothing to the last expert, which then runs on no rows at all."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        with torch.no_grad():
            self.gate.bias[2] = -1e4

    def forward(self, x: Tensor) -> Tensor:
        shares, y = self.gate(x).softmax(-1), torch.zeros_like(x)
        for i, part in enumerate(self.parts):
            rows = (shares.argmax(-1) == i).nonzero().squeeze(-1)
            y = y.index_add(0, rows, part(x[rows]) * shares[rows, i : i + 1])
        return self.out(x + y)


class Branch(Parts):
    """A branch behind an `if`."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts[0](x) + self.parts[1](x)
        if float(x.abs().max()) > 100:
            y = y + self.parts[2](x)
        return self.out(y)


class Auxiliary(Parts):
    """A head that is active in training only."""

    def forward(self, x: Tensor) -> Any:
        y = self.out(self.parts[0](x) + self.parts[1](x))
        return (y, self.parts[2](x)) if self.training else y


class Missing(Parts):
    """A modality that the data has none of: its features are all zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.parts[0](x) + self.parts[1](x) + self.parts[2](torch.zeros_like(x)))


class Gated(Parts):
    """A branch whose gate is shut on all the data: it is given something, but nothing comes of it."""

    def forward(self, x: Tensor) -> Tensor:
        open_ = (x.abs().amax(-1, keepdim=True) > 100).to(x.dtype)
        return self.out(self.parts[0](x) + self.parts[1](x) + open_ * self.parts[2](x))


def planned(kind: type[Parts], **options: Any) -> tuple[rf.Plan, list[str]]:
    """Return a plan, and what was warned of."""
    torch.manual_seed(1)
    net = kind().eval()
    data = [torch.randn(32, 16) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = rf.plan(net, X, budget="params<=50%", calibration=data, methods="svd", **options)
    assert all(w.category is RankfoldWarning for w in caught)
    return plan, [str(w.message) for w in caught]


def rank(plan: rf.Plan, name: str) -> int:
    choice = plan.layers[name]
    return choice.ranks[0] if choice.method else 16


@pytest.mark.parametrize("proxy", ["network", "fisher", "fisher+network"])
@pytest.mark.parametrize("kind", [Mixture, Branch, Auxiliary, Missing])
def test_a_layer_without_data(kind: type[Parts], proxy: str) -> None:
    plan, told = planned(kind, strategy=rf.CompressNAS(proxy=proxy))
    assert len(told) == 1
    assert "no calibration sample reaches 'parts.2'" in told[0]
    assert rank(plan, "parts.2") >= min(rank(plan, "parts.0"), rank(plan, "parts.1"))
    choice = plan.layers["parts.2"]
    assert choice.method is None or "no calibration sample reaches it" in (choice.reason or "")


def test_a_layer_whose_output_is_not_used() -> None:
    """It has moments; only the outputs say nothing of it."""
    plan, told = planned(Gated)
    assert len(told) == 1
    assert "no change of 'parts.2' changes the compared outputs" in told[0]
    assert rank(plan, "parts.2") >= min(rank(plan, "parts.0"), rank(plan, "parts.1"))


@pytest.mark.parametrize(
    "options", [{"data_aware": False}, {"strategy": rf.CompressNAS(rounds=2)}, {"strategy": "energy"}]
)
def test_other_searches_do_not_cut_it_to_the_bone(options: dict[str, Any]) -> None:
    plan, told = planned(Mixture, **options)
    assert any("'parts.2'" in text for text in told)
    assert rank(plan, "parts.2") >= min(rank(plan, "parts.0"), rank(plan, "parts.1")) - 1


def test_where_every_layer_is_reached_nobody_is_told() -> None:
    class Whole(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(sum((part(x) for part in self.parts), x))

    plan, told = planned(Whole)
    assert not told
    assert not any(choice.reason for choice in plan.factored.values())


def test_the_report_and_every_reconstruction() -> None:
    torch.manual_seed(1)
    net, data = Mixture().eval(), [torch.randn(32, 16) for _ in range(2)]
    with torch.no_grad():  # rank 4, so that the budget takes all three
        for part in net.parts:
            part.weight.copy_(torch.randn(16, 4) @ torch.randn(4, 16) / 8)
    errors = {}
    for mode in ("weights", "data", "sequential"):
        with pytest.warns(RankfoldWarning, match=r"'parts\.2'"):
            result = rf.compress(
                net, X, budget="params<=70%", methods="svd", calibration=data, reconstruct=mode,
                overrides={"parts.2": ("svd", 4)},
            )  # fmt: skip
        assert f"parts.2: {UNREACHED}" in result.report.notes
        weight = result.model.get_submodule("parts.2").weight.detach()
        errors[mode] = float((weight - net.parts[2].weight.detach()).norm())
    assert all(error < 1e-4 for error in errors.values()), errors


def test_channels_without_data_still_count_a_little() -> None:
    """Half of the channels are zero on the data: the layer is reached, and full rank keeps its weight."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(16, 16))
    data = [torch.randn(64, 16) * torch.tensor([1.0] * 8 + [0.0] * 8)]
    moments = collect_moments(net, data, inspect(net, X).compressible)
    assert moments.unreached == ()
    small = rf.apply(net, rf.plan(net, X, strategy=rf.Manual(layers={"0": ("svd", 16)})), data)
    with torch.no_grad():
        assert float((small(X) - net(X)).norm() / net(X).norm()) < 1e-3


class Slots(nn.Module):
    """Every expert runs on slots, which are zero where it gets no token: its second layer sees a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + self.experts[1](torch.zeros_like(x)) * 0


@pytest.mark.parametrize("strategy", ["compressnas", "energy"])
def test_a_constant_input_is_no_data(strategy: str) -> None:
    with pytest.warns(RankfoldWarning, match=r"'experts\.1\.0', 'experts\.1\.2' .*always the same"):
        plan = rf.plan(Slots().eval(), X, budget="params<=50%", strategy=strategy, calibration=[X, X + 1])
    dead, live = (plan.layers[f"experts.{i}.2"] for i in (1, 0))
    assert not dead.ranks or not live.ranks or dead.ranks[0] * 3 >= live.ranks[0]


def test_one_vector_or_gray_images_are_data() -> None:
    for net, data in (
        (nn.Sequential(nn.Linear(16, 8)), [X[:1]]),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), [torch.randn(2, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()]),
    ):
        moments = collect_moments(net, data, inspect(net, data[0]).layers)
        assert "0" in moments
        assert not moments.unreached
