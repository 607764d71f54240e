"""BatchNorm re-estimation: right averages, kept only where they help, undone without a trace."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankfold.calibration import reestimate_batchnorm
from rankfold.errors import DataError, ModelError, RankfoldWarning


def network() -> nn.Sequential:
    """Return a small network with statistics of some data."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip
    for _ in range(50):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


def batches(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(count)]


def damaged(model: nn.Module) -> nn.Module:
    """Return a copy whose convolutions have lost most of their size."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(0.3)
    return other


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def error(model: nn.Module, reference: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((model(x) - reference(x)).square().mean()) for x in data)


def test_statistics_are_the_average_over_the_batches() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.3)
    data = [torch.randn(n, 3, 5, 5) * 2 + 1 for n in (4, 4, 2)]
    assert reestimate_batchnorm(norm, data)
    arrays = [x.double().numpy() for x in data]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = np.mean([a.mean((0, 2, 3)) for a in arrays], axis=0)
    var = np.mean([a.var((0, 2, 3), ddof=1) for a in arrays], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-5)
    assert not np.allclose(norm.running_var.numpy(), arrays[0].var((0, 2, 3), ddof=1), rtol=1e-4)
    assert norm.momentum == 0.3
    assert norm.training


def test_they_help_after_severe_damage() -> None:
    dense = network()
    small = damaged(dense)
    fresh = batches(4, seed=7)
    before = error(small, dense, fresh)
    assert reestimate_batchnorm(small, batches(6), dense)
    assert error(small, dense, fresh) < 0.5 * before


def test_they_are_refused_where_they_hurt() -> None:
    """The model is the reference itself: any other statistics are worse."""
    dense = network()
    same = copy.deepcopy(dense)
    before = state(same)
    assert not reestimate_batchnorm(same, batches(6), dense)
    assert equal(state(same), before)
    # Without a reference nobody asks.
    assert reestimate_batchnorm(same, batches(6))
    assert not equal(state(same), before)


def test_only_statistics_change_and_all_else_is_restored() -> None:
    dense = network()
    small = damaged(dense)
    small[1].train()
    small[3].train()
    before, modes = state(small), [m.training for m in small.modules()]
    dense_before = state(dense)
    random = torch.get_rng_state()
    assert reestimate_batchnorm(small, batches(3), dense)
    after = state(small)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{i}.{name}" for i in (1, 5) for name in buffers}
    assert [m.training for m in small.modules()] == modes
    assert equal(state(dense), dense_before)
    assert torch.equal(torch.get_rng_state(), random)
    assert small[1].momentum == small[5].momentum == 0.1


def test_the_estimate_and_the_decision_use_different_batches() -> None:
    dense = network()
    a, b = damaged(dense), damaged(dense)
    data = batches(4)
    assert reestimate_batchnorm(a, data, dense)
    assert reestimate_batchnorm(b, [data[0], data[2]])
    assert equal(state(a), state(b))
    # Where the deciding batches speak against it, it is refused.
    same = copy.deepcopy(dense)
    assert not reestimate_batchnorm(same, [data[0] * 9, data[1]], dense)


def test_one_batch_an_iterator_and_a_shuffled_loader() -> None:
    dense = network()
    data = batches(4)
    assert reestimate_batchnorm(damaged(dense), data[:1], dense)
    a, b = damaged(dense), damaged(dense)
    assert reestimate_batchnorm(a, data, dense)
    assert reestimate_batchnorm(b, iter(data), dense)
    assert equal(state(a), state(b))
    tensors = torch.utils.data.TensorDataset(torch.cat(data), torch.zeros(128))
    loader = torch.utils.data.DataLoader(tensors, 32, shuffle=True)
    results = [damaged(dense) for _ in range(2)]
    assert all(reestimate_batchnorm(model, loader, dense) for model in results)
    assert equal(state(results[0]), state(results[1]))


class Many(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.model(x)
        return {"a": [y, (y[:, :2],)], "n": y.argmax(1)}


class Detector(Many):
    """The output's size depends on the values, as a detector's does."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.model(x)
        return {"boxes": y[y > y.mean() + 1e-3 * y.std()]}


def test_nested_outputs() -> None:
    dense = network()
    a, b = damaged(dense), damaged(dense)
    assert reestimate_batchnorm(Many(a), batches(4), Many(dense))
    assert reestimate_batchnorm(b, batches(4), dense)
    assert equal(state(a), state(b))


def test_incomparable_outputs_keep_the_old_statistics_with_a_warning() -> None:
    dense = network()
    small = damaged(dense)
    before = state(small)
    with pytest.warns(RankfoldWarning, match="cannot be compared") as caught:
        assert not reestimate_batchnorm(Detector(small), batches(4), Detector(dense))
    assert caught[0].filename == __file__
    assert equal(state(small), before)


def test_without_running_statistics_there_is_nothing_to_do() -> None:
    assert not reestimate_batchnorm(nn.Linear(3, 3), [torch.randn(2, 3)])
    assert not reestimate_batchnorm(nn.BatchNorm1d(3, track_running_stats=False), [torch.randn(2, 3)])


def test_bad_data_changes_nothing() -> None:
    dense = network()
    small = damaged(dense)
    before = state(small)
    with pytest.raises(DataError, match="calibration data is empty"):
        reestimate_batchnorm(small, [])
    with pytest.raises(ModelError, match="cannot run on calibration batch 1, 4x7x8x8"):
        reestimate_batchnorm(small, [torch.randn(4, 7, 8, 8)], dense)
    nan = [x * math.nan for x in batches(2)]
    assert not reestimate_batchnorm(small, nan, dense)
    assert not reestimate_batchnorm(small, nan)
    assert equal(state(small), before)
    assert small[1].momentum == 0.1
    norm = nn.BatchNorm1d(3)
    with pytest.raises(DataError, match="one value per channel"):
        reestimate_batchnorm(norm, [torch.randn(1, 3)])
    assert "one value per channel" in reestimate_batchnorm(norm, [torch.randn(1, 3)], norm).reason
    assert torch.equal(norm.state_dict()["running_var"], torch.ones(3))
