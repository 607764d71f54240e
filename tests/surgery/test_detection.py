"""What detection networks do to their layers: attributes that steer `forward`, frozen kernels, folded batch norms.

The stand-in is built as such networks are: a list of modules, each of which was told by the model code which number it
has (``m.i``) and where its input comes from (``m.f``), and a head with lists of convolutions for each scale.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

import rankfold as rf
from rankfold._tensors import tensors_of
from rankfold.errors import UnsupportedLayer
from rankfold.surgery import Factored, factored_layers, strip


class Block(nn.Module):
    def __init__(self, inn: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inn, out, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Concat(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


class Head(nn.Module):
    """Decodes boxes as distributions over bins whose values are a frozen kernel; other outputs in training."""

    anchors: Tensor

    def __init__(self, channels: tuple[int, ...], bins: int = 8) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(nn.Sequential(Block(c, 24), nn.Conv2d(24, 4 * bins, 1)) for c in channels)
        self.classes = nn.ModuleList(nn.Conv2d(c, 16, 3, padding=1) for c in channels)
        self.expect = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.expect.weight.data.copy_(torch.arange(float(bins)).view(1, bins, 1, 1))
        self.register_buffer("anchors", torch.tensor([2.0, 4.0]))
        self.bins = bins

    def forward(self, features: list[Tensor]) -> Any:
        raw = {
            "boxes": [boxes(x) for boxes, x in zip(self.boxes, features, strict=True)],
            "classes": [classes(x) for classes, x in zip(self.classes, features, strict=True)],
        }
        if self.training:
            return raw
        boxes = torch.cat(
            [b.flatten(2) * a for b, a in zip(raw["boxes"], self.anchors, strict=True)], 2
        )  # (batch, 4 * bins, positions)
        share = boxes.unflatten(1, (4, self.bins)).movedim(2, 1).softmax(1)
        return self.expect(share).squeeze(1), raw


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                Block(3, 16, 2),
                nn.Conv2d(16, 32, 3, 2, 1),  # a bare layer in the list: it carries the attributes itself
                Block(32, 32),
                nn.Upsample(scale_factor=2),
                Concat(),
                nn.Conv2d(48, 32, 1),
                Head((32, 32)),
            ]
        )
        sources: list[Any] = [-1, -1, -1, -1, [-1, 0], -1, [2, 5]]
        for i, (m, f) in enumerate(zip(self.layers, sources, strict=True)):
            m.i, m.f, m.type = i, f, type(m).__name__  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        done: list[Tensor] = []
        for m in self.layers:
            f: Any = m.f
            value = (done[-1] if done else x) if f == -1 else [done[-1] if j == -1 else done[j] for j in f]
            x = m(value)
            assert m.i == len(done)
            done.append(x)
        return x

    def fuse(self, fold: Any) -> Detector:
        for m in self.modules():
            if isinstance(m, Block):
                m.conv = fold(m.conv, m.bn)
                del m.bn
                m.forward = m.forward_fuse  # type: ignore[method-assign]
        return self


def assigned(conv: Any, bn: Any) -> nn.Module:
    """Fold into the layer itself, as detection libraries do."""
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return conv


def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 0.6)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DATA = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in range(2)]


def compressed(model: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rf.errors.RankfoldWarning)
        plan = rf.plan(model, X, budget="params/2", strategy="energy", calibration=DATA)
        return rf.apply(model, plan, calibration=DATA, **options)


def close(got: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    pairs = list(zip(tensors_of(got), tensors_of(wanted), strict=True))
    return all((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1.0) for a, b in pairs)


def test_the_routes_of_a_bare_layer_survive_compression_storage_and_stripping(tmp_path: Path) -> None:
    model = detector()
    small = compressed(model)
    assert {"layers.1", "layers.5"} <= set(factored_layers(small))
    rf.save(small, tmp_path / "a")
    loaded = rf.load(tmp_path / "a", detector())
    plain = strip(small)
    assert not factored_layers(plain)
    for other in (small, loaded, plain, copy.deepcopy(small)):
        layers = other.get_submodule("layers")
        assert [(m.i, m.f, m.type) for m in layers.children()] == [(m.i, m.f, m.type) for m in model.layers]
        assert close(other(X), small(X), 1e-6)
    assert not close(small(X), model(X), 1e-3)  # the control: it was compressed
    assert not hasattr(plain.get_submodule("layers.1"), "choice")


def test_the_head_keeps_its_type_buffers_frozen_kernel_and_outputs() -> None:
    model = detector()
    small = compressed(model)
    head, dense = small.get_submodule("layers.6"), model.get_submodule("layers.6")
    assert type(head) is Head
    assert torch.equal(head.anchors, dense.anchors)  # type: ignore[arg-type]
    assert torch.equal(head.expect.weight, dense.expect.weight)  # type: ignore[union-attr]
    assert not head.expect.weight.requires_grad  # type: ignore[union-attr]
    assert any(name.startswith("layers.6.") for name in factored_layers(small))
    for training in (False, True):
        got, wanted = small.train(training)(X), model.train(training)(X)
        assert type(got) is type(wanted)
        assert [t.shape for t in tensors_of(got)] == [t.shape for t in tensors_of(wanted)]
    torch.stack([t.square().mean() for t in tensors_of(small(X))]).sum().backward()
    factors = [p for layer in factored_layers(small).values() for p in layer.parameters()]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in factors)
    assert head.expect.weight.grad is None  # type: ignore[union-attr]


def test_compression_after_folding_keeps_the_bound_forward() -> None:
    folded = detector()
    expected = folded(X)
    folded.fuse(fuse_conv_bn_eval)
    assert close(folded(X), expected)
    small = compressed(folded)
    assert any(isinstance(m.conv, Factored) for m in small.modules() if isinstance(m, Block))
    assert [t.shape for t in tensors_of(small(X))] == [t.shape for t in tensors_of(expected)]


@pytest.mark.parametrize("fold", [fuse_conv_bn_eval, assigned])
def test_batch_norms_fold_into_factored_layers(fold: Any) -> None:
    small = compressed(detector())
    expected = small(X)
    places = set(factored_layers(small))
    before = sum(p.numel() for p in small.parameters())
    folded = copy.deepcopy(small).fuse(fold)  # type: ignore[operator]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert set(factored_layers(folded)) == places
    assert sum(p.numel() for p in folded.parameters()) < before
    assert close(folded(X), expected)
    first = next(iter(factored_layers(folded).values()))
    with torch.no_grad():
        next(first.parameters()).mul_(2)
    assert not close(folded(X), expected)  # the control: these outputs come from the factors


@pytest.mark.parametrize("method", ["tucker", "svd", "spatial_svd", "cp", "tt", "tt3", "filterwise_cp"])
@pytest.mark.parametrize("last", [False, True])
def test_outputs_of_every_convolution_method_scale(method: str, last: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, padding=1, groups=2 if method in ("tucker", "svd") else 1, bias=False)
    norm = nn.BatchNorm2d(12).eval()
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.running_mean, -1, 1)
    ranks = {"tucker": (3, 2), "tt3": (3, 2), "tt": (3, 4, 3)}.get(method, (2,))
    small = rf.factorize(layer, method, ranks)
    small = small.to(memory_format=torch.channels_last).eval() if last else small.eval()
    x = torch.randn(2, 8, 6, 6)
    folded = fuse_conv_bn_eval(small, norm)  # type: ignore[type-var]
    torch.testing.assert_close(folded(x), norm(small(x)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(folded(x), small(x), atol=1e-2)


def test_a_transposed_layer_scales_per_output_channel() -> None:
    torch.manual_seed(0)
    small = rf.factorize(nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), "tucker", (2, 2))
    x = torch.randn(1, 8, 5, 5)
    scale = torch.tensor([0.5, -2.0, 0.0, 1.0, 3.0, 1.5])
    without = small(x) - small.bias[:, None, None]
    weight = small.weight.detach().unflatten(0, (2, 4)) * scale.view(2, 1, 3, 1, 1)
    small.weight = nn.Parameter(weight.flatten(0, 1))
    torch.testing.assert_close(small(x) - small.bias[:, None, None], without * scale[:, None, None])


def test_a_weight_that_is_read_is_contiguous() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 12, 3), nn.ConvTranspose2d(8, 12, 3), nn.Linear(8, 12)]
    for layer, method in zip(layers, ("tucker", "tucker", "svd"), strict=True):
        small = rf.factorize(layer, method, 0.5)
        assert small.weight.view(-1).shape == layer.weight.view(-1).shape  # libraries fold batch norms through a view


def test_any_other_weight_is_refused_and_changes_nothing() -> None:
    torch.manual_seed(0)
    small = rf.factorize(nn.Conv2d(8, 12, 3), "tucker", (3, 2))
    before = small.weight.detach().clone()
    for wrong in (torch.randn(12, 8, 3, 3), before[:6], before * torch.linspace(1, 2, 8).view(1, 8, 1, 1)):
        with pytest.raises(UnsupportedLayer, match="computed from the factors"):
            small.weight = nn.Parameter(wrong)
    assert torch.equal(small.weight, before)
    small.weight = nn.Parameter(before * 2)
    torch.testing.assert_close(small.weight, before * 2)


def test_gauged_factors_and_tensor_trains_refuse_with_the_way_out() -> None:
    torch.manual_seed(0)
    matrix = rf.factorize(nn.Linear(16, 16, bias=False), "ttm", (4,))
    with pytest.raises(UnsupportedLayer, match="before compressing"):
        matrix.weight = nn.Parameter(2 * matrix.weight.detach())
    gauged = rf.factorize(nn.Conv2d(16, 16, 3, bias=False), "svd", (8,), gauge=True)
    with pytest.raises(UnsupportedLayer, match="before compressing"):
        gauged.weight = nn.Parameter(2 * gauged.weight.detach())
    with pytest.raises(UnsupportedLayer, match="cannot hold a bias"):
        matrix.bias = nn.Parameter(torch.zeros(16))
