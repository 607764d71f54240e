"""Infinite outputs are masked scores: compared where they are finite, and kept where they are not. NaN is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import reestimate_batchnorm
from rankfold.errors import DataError, MetricError, ModelError
from rankfold.evaluation import output_error, topk
from rankfold.outputs import distance_and_energy, squared_distance
from rankfold.tune.losses import cross_entropy, distillation

INF = -math.inf


class Masked(nn.Module):
    """Masks two of six classes."""

    def __init__(self, how: str = "fill") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b = how, nn.Linear(16, 16), nn.Linear(16, 6)
        self.register_buffer("mask", torch.tensor([0.0] * 4 + [INF] * 2))

    def forward(self, x: Tensor) -> Any:
        y = self.b(torch.relu(self.a(x)))
        if self.how == "fill":
            return y.masked_fill(torch.arange(6) > 3, INF)
        if self.how == "add":
            return y + self.mask
        if self.how in ("least", "far"):  # masks that are finite
            return y.masked_fill(torch.arange(6) > 3, torch.finfo(y.dtype).min if self.how == "least" else -1e9)
        if self.how == "log_softmax":
            return (y + self.mask).log_softmax(-1)
        if self.how == "rows":  # other classes in each sample
            return y.masked_fill(x[:, :6] > 0.8, INF)
        return {"logits": y + self.mask, "hidden": y}


def data(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(count)]


@torch.no_grad()
def gap(model: nn.Module, reference: nn.Module) -> tuple[float, float]:
    return squared_distance(model(data()[0]), reference(data()[0]))


@pytest.mark.parametrize("proxy", ["network", "fisher"])
@pytest.mark.parametrize("how", ["fill", "add", "least", "far", "log_softmax", "rows", "dict"])
def test_a_search(how: str, proxy: str) -> None:
    net = Masked(how).eval()
    small = rf.compress(
        net, data()[0][:2], budget="params<=60%", calibration=data(), strategy=rf.CompressNAS(proxy=proxy)
    ).model
    distance, energy = gap(small, net)
    assert 0 < distance < 0.6 * energy < math.inf


def test_damages_are_those_without_the_masked_classes() -> None:
    class Rest(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :4]

    options: dict[str, Any] = {"calibration": data(), "strategy": rf.CompressNAS(rivals=())}
    found = [
        rf.plan(net.eval(), data()[0][:2], budget="params<=60%", **options).provenance.search["predicted_loss"]
        for net in (Rest(), Masked("fill"), Masked("add"), Masked("least"), Masked("far"))
    ]
    assert found[1:] == pytest.approx(found[:1] * 4, rel=1e-6)


def test_large_values_that_differ_are_values() -> None:
    large = torch.tensor([1e9, 2e9])
    assert distance_and_energy(large * 2, large) == pytest.approx((5e18, 5e18))
    assert distance_and_energy(large, large) == pytest.approx((0.0, 5e18))


def test_distances() -> None:
    a, b = torch.tensor([1.0, INF, math.inf, 3.0]), torch.tensor([2.0, INF, math.inf, 3.0])
    assert distance_and_energy(a, b) == (1.0, 13.0)
    for other in ([2.0, INF, math.inf, INF], [2.0, 0.0, math.inf, 3.0], [2.0, math.inf, INF, 3.0], [math.nan] * 4):
        assert distance_and_energy(torch.tensor(other), b) == (math.inf, 13.0), other
    assert distance_and_energy(torch.full((2,), math.nan), torch.full((2,), math.nan))[0] == math.inf
    assert squared_distance({"x": a, "n": torch.tensor(1)}, {"x": b, "n": torch.tensor(2)}) == (1.0, 13.0)


class Broken(Masked):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return y * math.nan if self.how == "nan" else y + INF


@pytest.mark.parametrize("proxy", ["network", "fisher"])
@pytest.mark.parametrize(("how", "message"), [("nan", "contain NaN"), ("fill", "contain no finite value")])
def test_what_cannot_be_compared_is_refused_with_the_reason(how: str, message: str, proxy: str) -> None:
    net = Broken(how).eval()
    with pytest.raises(ModelError, match=message):
        rf.plan(net, data()[0][:2], budget="params<=60%", calibration=data(), strategy=rf.CompressNAS(proxy=proxy))


def test_metrics() -> None:
    net = Masked().eval()
    batches = data()
    labels = [(x, net(x).argmax(-1)) for x in batches]
    assert rf.evaluate(net, rf.top1(labels)) == 1.0
    masked = [(x, torch.full((32,), 5)) for x in batches]
    assert rf.evaluate(net, topk(masked, 6)) == 0.0, "a masked class is no guess"
    assert rf.evaluate(net, rf.agreement(net, batches)) == 1.0
    assert rf.evaluate(net, output_error(net, batches)) == 0.0
    other = Masked()
    with torch.no_grad():
        other.b.bias += 0.1
    assert 0 < rf.evaluate(other.eval(), output_error(net, batches)) < 10
    unmasked = Masked()
    unmasked.how = "add"
    unmasked.mask[5] = 0
    with pytest.raises(MetricError, match="infinite or NaN in different places"):
        rf.evaluate(unmasked.eval(), output_error(net, batches))


@pytest.mark.parametrize("distill", ["kl", "mse"])
@pytest.mark.parametrize("how", ["fill", "add", "log_softmax", "rows"])
def test_fine_tuning(how: str, distill: str) -> None:
    net = Masked(how).eval()
    small = rf.apply(net, rf.plan(net, data()[0][:2], budget="params<=60%"))
    before = gap(small, net)[0]
    config = rf.FineTune(data=data(4), epochs=4, lr=3e-3, distill=distill)
    tuned = rf.finetune(small, config, teacher=net)
    assert all(math.isfinite(epoch.loss) for epoch in tuned.history)
    assert gap(tuned.model.eval(), net)[0] < before


def test_losses() -> None:
    theirs, ours = torch.tensor([[1.0, 2.0, INF]]), torch.tensor([[2.0, 2.0, INF]], requires_grad=True)
    for kind in ("kl", "mse"):
        loss = distillation(ours, theirs, kind=kind, temperature=2.0)
        rest = distillation(ours[:, :2], theirs[:, :2], kind=kind, temperature=2.0)
        assert loss.item() == pytest.approx(rest.item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, ours)
        assert bool(gradient.isfinite().all())
        assert float(gradient[0, 2]) == 0
        with pytest.raises(ModelError, match="infinite in different places"):
            distillation(torch.tensor([[2.0, INF, INF]]), theirs, kind=kind, temperature=2.0)
        with pytest.raises(ModelError, match="teacher's outputs contain NaN"):
            distillation(ours, theirs * math.nan, kind=kind, temperature=2.0)
    with pytest.raises(ModelError, match="infinite in different places"):
        distillation(torch.tensor([[2.0, 1.0, 1.0]]), theirs, kind="mse", temperature=2.0)


def test_cross_entropy() -> None:
    scores = torch.tensor([[1.0, 2.0, INF], [0.0, 1.0, INF]], requires_grad=True)
    loss = cross_entropy(scores, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(cross_entropy(scores[:, :2], torch.tensor([0, 1])).item())
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    loss = cross_entropy(scores, shares)
    assert loss.item() == pytest.approx(cross_entropy(scores[:, :2], shares[:, :2]).item())
    (gradient,) = torch.autograd.grad(loss, scores)
    assert bool(gradient.isfinite().all())
    for wrong in (torch.tensor([0, 2]), torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])):
        with pytest.raises(DataError, match="masks"):
            cross_entropy(scores, wrong)


def test_batch_norm_statistics_are_judged() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), Masked("add"))
    for x in data(8):
        net(x + 2)
    net.eval()
    small = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), Masked("add")).eval()
    small.load_state_dict(net.state_dict())
    with torch.no_grad():
        small[0].weight.mul_(0.3)
    assert reestimate_batchnorm(small, [x + 2 for x in data(4)], net)
