"""BatchNorm statistics from awkward batches: what can be used is used, and the report gives the true reason."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rankfold as rf
from rankfold.calibration import reestimate_batchnorm


def flat(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), norm(8), nn.ReLU(), nn.Linear(8, 8), norm(8), nn.Linear(8, 3))
    for part in net:
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean, part.running_var = torch.randn(8), torch.rand(8) + 0.5
    return net.eval()


def rows(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 8, generator=generator) + 1 for size in sizes]


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items() if "running" in k or "tracked" in k}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def estimated(net: nn.Module, data: Any, reference: nn.Module | None = None) -> dict[str, Tensor]:
    twin = copy.deepcopy(net)
    assert reestimate_batchnorm(twin, data, reference)
    assert not any(module.training for module in twin.modules())
    return statistics(twin)


@pytest.mark.parametrize("sizes", [(16, 16, 1), (1, 16, 16), (16, 1, 16), (1, 1, 16, 16, 1)])
def test_a_batch_of_one_is_left_out(sizes: tuple[int, ...]) -> None:
    data = rows(*sizes)
    found = estimated(flat(), data)
    assert same(found, estimated(flat(), [x for x in data if len(x) > 1]))
    assert not same(found, estimated(flat(), [x for x in data if len(x) > 1][:1]))


def test_a_batch_of_one_leaves_its_turn_to_the_next() -> None:
    dense, (one, first, second) = flat(), rows(1, 64, 64)
    reestimate_batchnorm(dense, [first, second])
    small = copy.deepcopy(dense)
    with torch.no_grad():
        small[0].weight.mul_(0.2)
    assert same(estimated(small, [one, first, second], dense), estimated(small, [first]))


def test_the_last_batch_of_a_loader() -> None:
    dense, data = flat(), torch.cat(rows(33))
    for _ in range(40):
        dense.train()(data + torch.randn_like(data))
    dense.eval()
    notes = []
    for drop in (True, False):
        result = rf.compress(
            dense, data[:2], budget="params<=60%", strategy="energy", calibration=DataLoader(data, 8, drop_last=drop),
            reconstruct="weights",
        )  # fmt: skip
        notes.append([note for note in result.report.notes if "BatchNorm" in note])
    assert notes[0] == notes[1]


@pytest.mark.parametrize("data", [rows(1), rows(1, 1, 1), DataLoader(torch.cat(rows(3)), 1)])
def test_where_nothing_is_left_the_report_says_why(data: Any) -> None:
    result = rf.compress(flat(), rows(2)[0], budget="params<=60%", calibration=data)
    (note,) = [note for note in result.report.notes if "BatchNorm" in note]
    assert note.startswith("BatchNorm statistics were kept: every calibration batch gives a BatchNorm at most one ")


@pytest.mark.parametrize(
    ("shapes", "used"),
    [(((4, 3, 1, 1), (1, 3, 1, 1)), 1), (((1, 3, 4, 4), (4, 3, 1, 1)), 2), (((1, 3, 2, 2), (1, 3, 1, 1)), 1)],
)
def test_maps_of_one_position(shapes: Any, used: int) -> None:
    norm = nn.BatchNorm2d(3)
    data = [torch.randn(shape) for shape in shapes]
    assert reestimate_batchnorm(norm, data)
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == used
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in data[:used]]).mean(0))


def test_mixed_norms_take_what_each_can() -> None:
    """One picture is enough for maps, and not for the vectors after pooling: those keep what they had."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3)).eval()
    net[3].running_mean = torch.randn(3)
    before = statistics(net)
    x = torch.randn(1, 3, 8, 8)
    after = estimated(net, [x])
    torch.testing.assert_close(after["0.running_mean"], x.mean((0, 2, 3)))
    assert torch.equal(after["3.running_mean"], before["3.running_mean"])
    assert int(after["3.num_batches_tracked"]) == 0


class Experts(nn.Module):
    """One norm is never called, one is given no rows in one batch and one row in another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.never = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.b.running_mean, self.never.running_mean = torch.ones(8), torch.full((8,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, 0] > 100
        return torch.cat([self.a(x[~chosen]), self.b(x[chosen])])


def test_experts_with_few_rows_or_none() -> None:
    some, one, none = rows(8, 8, 8)
    some[:4, 0] = one[:1, 0] = 1000
    net = Experts().eval()
    after = estimated(net, [none, one, some])
    assert all(bool(v.isfinite().all()) for v in after.values())
    torch.testing.assert_close(after["b.running_mean"], some[:4].mean(0))
    assert int(after["a.num_batches_tracked"]) == 3
    assert torch.equal(after["never.running_mean"], torch.full((8,), 2.0))
    assert reestimate_batchnorm(net, [none]), "the others have data"
    net.forward = net.never.forward = lambda x: x
    assert "no BatchNorm runs" in reestimate_batchnorm(net, [none]).reason


@pytest.mark.parametrize("momentum", [None, 0.1, 0.0])
def test_momentum_is_put_back_and_changes_nothing(momentum: float | None) -> None:
    net = flat()
    wanted = estimated(net, rows(8, 8))
    for part in net:
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = momentum
    assert same(estimated(net, rows(8, 8)), wanted)
    assert reestimate_batchnorm(net, rows(8, 8))
    assert net[1].momentum == momentum


def test_a_synchronized_norm_on_the_cpu() -> None:
    synced = flat(nn.SyncBatchNorm)
    synced.load_state_dict(flat().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(estimated(synced, rows(8, 8, 1)), estimated(flat(), rows(8, 8, 1)))


@pytest.mark.parametrize("change", [{"track_running_stats": False}, {"affine": False}])
def test_other_norms(change: dict[str, Any]) -> None:
    norm = nn.BatchNorm1d(8, **change)
    assert bool(reestimate_batchnorm(norm, rows(8))) is norm.track_running_stats
    instance = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)).eval()
    before = statistics(instance)
    assert not reestimate_batchnorm(instance, [torch.randn(2, 4, 8)])
    assert same(statistics(instance), before)
