"""Prepared layers are kept and used again, in a bounded amount of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods
from rankfold.inventory import static_inventory
from rankfold.methods import SVD, sharing, sharing_prepared

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 64, 20),
    ).eval()  # fmt: skip


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str, int]]:
    """Count how often each layer is prepared, by layer, method and number of input vectors (0 without moments)."""
    counts: Counter[tuple[str, str, int]] = Counter()

    def counting(name: str, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: methods.Method, weight: torch.Tensor, layer: Any, moments: Any) -> Any:
            counts[layer.name, name, 0 if moments is None else moments.count] += 1
            return prepare(self, weight, layer, moments)

        return counted

    for entry in methods.registry:
        monkeypatch.setattr(entry.plugin, "prepare", counting(entry.plugin.name, entry.plugin.prepare))
    return counts


@pytest.mark.parametrize("calibrated", [True, False])
def test_one_compress_prepares_every_layer_and_method_once(
    calibrated: bool, prepared: Counter[tuple[str, str, int]]
) -> None:
    rf.compress(net(), X[:1], budget="params<=50%", calibration=[X] if calibrated else None)
    assert len({(layer, method) for layer, method, _ in prepared}) >= 7
    assert set(prepared.values()) == {1}
    vectors = {count for layer, _, count in prepared if layer == "0"}
    # By the weights, for the search and the factors, and for the comparison of plans, whose samples are left out.
    assert vectors == ({0, 16 * 144, 8 * 144} if calibrated else {0})


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect the parameters that are copied."""
    tensors: list[Tensor] = []

    def counting(self: nn.Parameter, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            tensors.append(self)
        return deepcopy(self, memo)

    deepcopy = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", counting)
    return tensors


@pytest.mark.parametrize("calibrated", [True, False])
def test_one_compress_copies_every_weight_that_it_factors_once(calibrated: bool, copied: list[Tensor]) -> None:
    model = net()
    result = rf.compress(model, X[:1], budget="params<=10%", calibration=[X] if calibrated else None)
    weights = [model.get_submodule(name).weight for name in result.plan.factored]
    assert len(weights) >= 2
    assert [sum(tensor is weight for tensor in copied) for weight in weights] == [1] * len(weights)
    # The instance that the artifact is loaded onto has a copy of everything else.
    assert max(sum(tensor is parameter for tensor in copied) for parameter in model.parameters()) == 2
    assert sum(tensor.numel() for tensor in copied) < 1.1 * sum(p.numel() for p in model.parameters())


def test_without_sharing_they_are_prepared_again(
    prepared: Counter[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "ROOM", 0)
    rf.compress(net(), X[:1], budget="params<=50%", calibration=[X])
    assert max(prepared.values()) > 1


def layer() -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    return linear, static_inventory(linear)[0]


def test_only_the_same_layer_method_and_moments_share() -> None:
    linear, info = layer()
    other = rf.QR()
    weight = linear.weight.detach()
    with sharing_prepared():
        first = methods.prepare(SVD(), weight, info)
        assert methods.prepare(SVD(), weight.clone(), info) is first
        assert methods.prepare(SVD(), 2 * weight, info) is not first
        assert methods.prepare(SVD(), weight.double(), info) is not first
        assert methods.prepare(other, weight, info) is not first
        with sharing_prepared():
            assert methods.prepare(SVD(), weight, info) is first
    assert methods.prepare(SVD(), weight, info) is not first


def test_a_weight_that_was_changed_in_place_is_prepared_again() -> None:
    linear, info = layer()
    weight = linear.weight.detach()
    with sharing_prepared():
        first = methods.prepare(SVD(), weight, info)
        weight.mul_(2)
        assert methods.prepare(SVD(), weight, info) is not first


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ROOM", 3 * 4 * 64 * 48)  # three float32 weights
    linear, info = layer()
    weights = [linear.weight.detach() + i for i in range(12)]
    with sharing_prepared():
        for i, weight in enumerate(weights):
            named = replace(info, name=f"layer{i}")
            methods.prepare(SVD(), weight, named)
        again = [methods.prepare(SVD(), w, replace(info, name=f"layer{i}")) for i, w in enumerate(weights)]
        kept = [methods.prepare(SVD(), w, replace(info, name=f"layer{i}")) is again[i] for i, w in enumerate(weights)]
    assert 1 <= sum(kept) <= 3
