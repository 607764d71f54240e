"""Grad-CAM: against the formula, for pruned and factored networks, as a page, and with bad input."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ConfigError, DataError, MissingExtra, NoMatchingLayer
from rankfold.evaluation.heat_maps import feature_layer, heat_maps, similarity
from rankfold.reporting.heat_maps import HeatMaps

SIDE = 12


@pytest.fixture
def installed() -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (extra cam)")


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("installed")
def test_maps_are_those_of_the_formula(net: nn.Sequential, images: Tensor) -> None:
    """Equations 1 and 2: the mean gradient of each channel weights the channel; negative sums are dropped."""
    classes = torch.tensor([0, 3, 1])
    flags = [p.requires_grad for p in net.parameters()]
    maps = heat_maps(net, images, "2", classes)
    features = net[:3](images)
    scores = net[3:](features)[torch.arange(3), classes].sum()
    (gradient,) = torch.autograd.grad(scores, features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps, (expected - low) / (high - low).clamp_min(1e-7), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(maps, heat_maps(net, images, "2", classes.roll(1)), atol=1e-2)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_similarity() -> None:
    a = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    b = torch.tensor([[[2.0, 4.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    torch.testing.assert_close(similarity(a, b), torch.tensor([1, 1, 0, 0.5**0.5], dtype=torch.float64))


@pytest.mark.usefixtures("installed")
def test_compressed_networks_side_by_side(net: nn.Sequential, images: Tensor, tmp_path: Path) -> None:
    factored = rf.apply(net, rf.plan(net, images[:1], budget="params<=60%", strategy="uniform"))
    pruned = rf.apply(net, rf.plan(net, images[:1], strategy=rf.Prune(ratio=0.5)))
    maps = rf.gradcam(net, {"same": net, "params<=60%": factored, "pruned": pruned}, images, name="net")
    assert maps.layer == "2"
    same, first, second = maps.levels
    assert same.similarity == pytest.approx((1, 1, 1))
    assert first.mean < 1
    assert second.params < first.params < maps.params == same.params
    assert all(0 <= value < 1 for value in second.similarity)
    assert maps.predicted == same.predicted
    assert maps.unrelated is not None
    assert base64.b64decode(maps.images[0]).startswith(b"\x89PNG")
    maps.save(tmp_path / "maps.json")
    assert HeatMaps.load(tmp_path / "maps.json") == maps
    page = maps.to_html()
    assert page.count("<img ") == 3 * 5
    assert "params ≤ 60 %" in page
    assert "| same |" in maps.to_markdown()


@pytest.mark.usefixtures("installed")
def test_bad_input(net: nn.Sequential, images: Tensor) -> None:
    with pytest.raises(NoMatchingLayer, match="no layer '22'"):
        rf.gradcam(net, {"same": net}, images, layer="22")
    with pytest.raises(ConfigError, match=r"layer '6' \(Linear\) returns no tensor"):
        rf.gradcam(net, {"same": net}, images, layer="6")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4))
    with pytest.raises(ConfigError, match="no 2-D convolution"):
        rf.gradcam(plain, {"same": plain}, images)
    with pytest.raises(DataError, match=r"Got \(3, 12, 12\)"):
        rf.gradcam(net, {"same": net}, images[0])
    with pytest.raises(ConfigError, match="compressed networks by name"):
        rf.gradcam(net, {}, images)
    dense = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(DataError, match="one score per class"):
        rf.gradcam(dense, {"same": dense}, images)
    assert feature_layer(net, images, None) == "2"


def test_a_missing_package_is_named(net: nn.Sequential, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(MissingExtra, match=r'pip install "rankfold\[cam\]"'):
        rf.gradcam(net, {"same": net}, images)
