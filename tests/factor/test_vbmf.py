"""EVBMF finds the rank of planted matrices under noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankfold.factor import vbmf
from rankfold.factor.vbmf import evbmf_rank


def noisy(rows: int, columns: int, rank: int, noise: float, seed: int) -> torch.Tensor:
    """Return a matrix with `rank` singular values of 6 to 3 times those of unit noise's edge, plus noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left, right = torch.linalg.qr(draw(rows, max(rank, 1))).Q, torch.linalg.qr(draw(columns, max(rank, 1))).Q
    edge = rows**0.5 + columns**0.5
    values = edge * torch.linspace(6, 3, max(rank, 1), dtype=torch.float64) * (rank > 0)
    return (left * values) @ right.mT + noise * draw(rows, columns)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "columns"), [(40, 60), (60, 40), (50, 50), (20, 200)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_planted_rank_is_found(rows: int, columns: int, rank: int, seed: int) -> None:
    assert evbmf_rank(noisy(rows, columns, rank, 1.0, seed)) == rank


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_has_rank_zero(seed: int) -> None:
    assert evbmf_rank(noisy(50, 80, 0, 1.0, seed)) == 0


def test_signal_below_the_noise_is_not_counted() -> None:
    assert evbmf_rank(noisy(50, 80, 4, 0.5, 0)) == 4
    assert evbmf_rank(noisy(50, 80, 4, 20.0, 0)) == 0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_does_not_matter(scale: float) -> None:
    matrix = noisy(40, 60, 5, 1.0, 1)
    assert evbmf_rank(matrix * scale) == evbmf_rank(matrix) == evbmf_rank(matrix.mT)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (3, 2)])
def test_any_shape_gives_a_rank_in_range(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 0 <= evbmf_rank(matrix) <= min(shape)
    assert evbmf_rank(torch.zeros(shape)) == 0
    assert 0 <= evbmf_rank(torch.ones(shape)) <= min(shape)


@pytest.mark.parametrize("seed", range(10))
def test_the_noise_variance_is_the_best_of_a_fine_grid(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free energy has several minima."""
    found = []
    minimize = vbmf._minimize

    def compared(f: Callable[[Tensor], Tensor], lower: float, upper: float) -> float:
        grid = torch.logspace(math.log10(lower), math.log10(upper), 20_000, dtype=torch.float64)
        variance = minimize(f, lower, upper)
        found.append((float(f(torch.tensor([variance], dtype=torch.float64))), float(f(grid).min())))
        return variance

    monkeypatch.setattr(vbmf, "_minimize", compared)
    evbmf_rank(noisy(50 + seed, 60, 4 * seed, 0.5, seed))
    ((least, on_grid),) = found
    assert least <= on_grid + 1e-9 * abs(on_grid)
