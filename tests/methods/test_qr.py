"""``qr``: small matrices are decomposed by LAPACK, large ones in blocks, with the same pivots, factors and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rankfold import methods
from rankfold.factor.moments import Moments
from rankfold.methods import qr
from rankfold.records import LayerInfo

SIZES = {"square": (1, 20, 20), "tall": (1, 30, 12), "wide": (1, 12, 30), "groups": (3, 10, 8)}


def layer_of(groups: int, out: int, inside: int) -> LayerInfo:
    ones = (1, 1)
    return LayerInfo(
        name="conv", kind="conv", in_channels=groups * inside, out_channels=groups * out, groups=groups, kernel=ones,
        stride=ones, padding=(0, 0), dilation=ones,
    )  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(factors: tuple[Tensor, ...]) -> Tensor:
    """Multiply ``(groups, rank, in, 1, 1)`` and ``(groups, out, rank, 1, 1)``."""
    first, last = (factor.double().flatten(2) for factor in factors)
    return last @ first


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("on_data", [False, True])
def test_small_matrices_are_factored_like_large_ones(
    size: str, dtype: torch.dtype, on_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, out, inside = SIZES[size]
    layer = layer_of(groups, out, inside)
    weight = (random(groups * out, inside) * torch.logspace(-2, 0, inside, dtype=torch.float64)).to(dtype)
    weight = weight.reshape(layer.weight_shape)
    root = random(groups, inside, 40, seed=1)
    moments = Moments(channel=root @ root.mT / 40, patch=None, count=40) if on_data else None

    def prepared(small: int) -> methods.Prepared:
        monkeypatch.setattr(qr, "SMALL", small)
        return methods.prepare(methods.get("qr"), weight, layer, moments)

    ours, blocks = prepared(10**9), prepared(0)
    control = methods.prepare(methods.get("qr", {"pivoting": False}), weight, layer, moments)
    full = min(out, inside)
    for rank in (1, 3, full // 2, full):
        assert ours.error((rank,)) == pytest.approx(blocks.error((rank,)), rel=1e-6, abs=1e-7)
        found, expected = (product(p.factorize((rank,))) for p in (ours, blocks))
        exact = weight.double().reshape(groups, out, inside)
        assert float((found - expected).norm() / exact.norm()) < (1e-5 if dtype == torch.float32 else 1e-10)
        if rank == 3:  # the negative control: other columns
            assert float((product(control.factorize((rank,))) - expected).norm() / exact.norm()) > 1e-3
    assert float((product(ours.factorize((full,))) - exact).norm() / exact.norm()) < 1e-5


def test_one_decomposition_serves_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    multiply, *others = qr._routines(torch.float64)

    def counted(alpha: float, matrix: Any) -> Any:
        calls.append(matrix.shape)
        return multiply(alpha, matrix)

    monkeypatch.setattr(qr, "_routines", lambda _: (counted, *others))
    prepared = methods.prepare(methods.get("qr"), random(16, 8).reshape(16, 8, 1, 1), layer_of(1, 16, 8))
    for rank in (1, 5, 8):
        prepared.factorize((rank,))
        prepared.error((rank,))
    assert calls == [(8, 16)]
