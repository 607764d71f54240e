"""The pivots of a gauge: exact, bounded, well conditioned, whatever the matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankfold.factor.gauge import BOUND, Gauge, gauge


def whole(made: Gauge) -> Tensor:
    """Return E of ``M = E T``."""
    batch, r = made.pivots.shape
    out = torch.zeros(batch, r + made.others.shape[1], r, dtype=made.rest.dtype)
    for b in range(batch):
        out[b, made.pivots[b]] = torch.eye(r, dtype=out.dtype)
        out[b, made.others[b]] = made.rest[b]
    return out


def draw_matrix(draw: st.DrawFn) -> Tensor:
    batch, r = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    m = r + draw(st.integers(0, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    kept = draw(st.integers(0, r), label="rank")
    shape = (batch, m, kept), (batch, kept, r)
    left, right = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shape)
    fall = torch.logspace(0, -draw(st.integers(0, 12)), kept, dtype=torch.float64)
    return (left * fall) @ right * 10.0 ** draw(st.integers(-20, 20))


@given(data=st.data())
def test_any_matrix_in_terms_of_its_pivots(data: st.DataObject) -> None:
    matrix = st.composite(draw_matrix)
    m: Tensor = data.draw(matrix())
    made = gauge(m)
    r, rows = m.shape[2], m.shape[1]
    assert float((whole(made) @ made.transfer - m).norm()) <= 1e-12 * float(m.norm())
    assert made.rest.numel() == 0 or float(made.rest.abs().max()) <= BOUND + 1e-9
    assert 1 <= made.condition <= math.sqrt(1 + r * (rows - r) * BOUND**2) * (1 + 1e-9)
    for pivots, others in zip(made.pivots.tolist(), made.others.tolist(), strict=True):
        assert pivots == sorted(pivots)
        assert others == sorted(others)
        assert sorted(pivots + others) == list(range(rows))


def test_bad_rows_are_not_chosen() -> None:
    """The first rows are nearly dependent: taken for pivots, they would magnify rounding by 1e9."""
    m = torch.tensor([[[1.0, 1.0], [1.0, 1.0 + 1e-9], [0.0, 1.0], [3.0, -1.0]]], dtype=torch.float64)
    made = gauge(m)
    assert made.condition < 3
    assert float(made.rest.abs().max()) <= BOUND
    naive = torch.linalg.solve(m[:, :2], m, left=False)
    assert float(naive.abs().max()) > 1e8


def test_exchanges_bound_what_elimination_alone_does_not() -> None:
    """Wilkinson's matrix doubles at each step of Gaussian elimination with row pivoting."""
    n = 12
    wilkinson = torch.eye(n) - torch.tril(torch.ones(n, n), -1)
    wilkinson[:, -1] = 1
    made = gauge(torch.cat([wilkinson, torch.linspace(-1, 1, 3 * n).reshape(3, n)]).double().unsqueeze(0))
    assert float(made.rest.abs().max()) <= BOUND
    assert made.condition < 10


def test_zero_and_square_matrices() -> None:
    made = gauge(torch.zeros(2, 5, 3, dtype=torch.float64))
    assert float(made.rest.abs().sum()) == float(made.transfer.abs().sum()) == 0
    assert made.condition == 1
    square = torch.randn(2, 4, 4, dtype=torch.float64)
    made = gauge(square)
    assert made.pivots.tolist() == [[0, 1, 2, 3]] * 2
    assert made.others.shape == (2, 0)
    assert torch.equal(made.transfer, square)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_twice_and_the_matrix_is_left_alone(dtype: torch.dtype) -> None:
    m = torch.randn(2, 40, 9, dtype=dtype)
    before = m.clone()
    first, second = gauge(m), gauge(m)
    assert torch.equal(first.rest, second.rest)
    assert torch.equal(first.pivots, second.pivots)
    assert first.rest.dtype is dtype
    assert torch.equal(m, before)
