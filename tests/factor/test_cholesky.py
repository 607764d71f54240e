"""Both pivoted Cholesky decompositions against the plain greedy algorithm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankfold.factor.cholesky import BLOCK, Cholesky, PivotedCholesky
from rankfold.methods.qr import CompiledCholesky

Decompose = Callable[[Tensor], Cholesky]

both = pytest.mark.parametrize("decompose", [PivotedCholesky, CompiledCholesky], ids=["torch", "lapack"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def greedy(gram: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Return pivots and rows as Higham's algorithm 10.2 has them, one at a time."""
    rest, pivots, rows = gram.clone(), [], []
    for _ in range(count):
        pivot = int(rest.diagonal().argmax())
        row = rest[pivot] / rest[pivot, pivot].sqrt()
        rest = rest - torch.outer(row, row)
        pivots.append(pivot)
        rows.append(row)
    return pivots, torch.stack(rows)


@both
@pytest.mark.parametrize("n", [1, 7, BLOCK + 1, 3 * BLOCK])
def test_it_is_the_greedy_algorithm(n: int, decompose: Decompose) -> None:
    matrix = random(120, n) * torch.logspace(0, -2, n, dtype=torch.float64)
    gram = matrix.mT @ matrix
    pivots, rows = greedy(gram, n)
    found = decompose(matrix)
    assert found.pivots(n).tolist() == pivots
    torch.testing.assert_close(found.rows(n), rows, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.rows(n).mT @ found.rows(n), gram, rtol=0, atol=1e-9)
    assert pivots != sorted(pivots) or n < 10  # else nothing would be pivoted


@both
def test_it_can_be_extended(decompose: Decompose) -> None:
    matrix = random(60, 45)
    once, steps = decompose(matrix), decompose(matrix)
    for rank in (1, 4, BLOCK, BLOCK + 1, 45):
        assert torch.equal(steps.pivots(rank), once.pivots(45)[:rank])
        torch.testing.assert_close(steps.rows(rank), once.rows(45)[:rank], rtol=0, atol=1e-12)
    assert torch.equal(once.pivots(3), steps.pivots(3))  # asking for less is fine


@both
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_what_is_left_of_low_rank_is_nothing(rank: int, decompose: Decompose) -> None:
    matrix = random(30, rank) @ random(rank, 20, seed=1)
    found = decompose(matrix)
    assert sorted(found.pivots(20).tolist()) == list(range(20))  # each column once
    rows = found.rows(20)
    assert not bool(rows[rank + 1 :].any())
    torch.testing.assert_close(rows.mT @ rows, matrix.mT @ matrix, rtol=0, atol=1e-9)
    assert found.left_out(20) == found.left_out(rank + 2) == 0


@both
def test_equal_columns_are_not_taken_twice(decompose: Decompose) -> None:
    matrix = random(10, 1).expand(10, 6).contiguous()
    found = decompose(matrix)
    assert sorted(found.pivots(4).tolist()) == sorted(set(found.pivots(4).tolist()))
    assert float(found.rows(1).square().sum()) == pytest.approx(float(matrix.square().sum()))


@both
@pytest.mark.parametrize("size", [(40, 25), (25, 40)])
def test_the_basis_is_orthonormal_and_leaves_out_what_it_says(size: tuple[int, int], decompose: Decompose) -> None:
    matrix = random(*size)
    found, total = decompose(matrix), float(matrix.square().sum())
    for rank in (1, 3, 20):
        basis = found.basis(rank)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
        torch.testing.assert_close(basis.mT @ matrix, found.rows(rank), rtol=0, atol=1e-9)
        rest = matrix - basis @ found.rows(rank)
        assert found.left_out(rank) == pytest.approx(float(rest.square().sum()) / total, abs=1e-12)
        assert 0 < found.left_out(rank) < 1
        left, right = found.factors(rank)
        torch.testing.assert_close(left @ right, basis @ found.rows(rank), rtol=0, atol=1e-10)
        torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-10, atol=0)
