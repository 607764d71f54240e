"""Pivoted Cholesky against the plain greedy algorithm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankfold.factor.cholesky import BLOCK, PivotedCholesky


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


@pytest.mark.parametrize("n", [1, 7, 3 * BLOCK, 50])
def test_it_is_the_greedy_algorithm(n: int) -> None:
    matrix = random(60, n) * torch.logspace(0, -2, n, dtype=torch.float64)
    gram = matrix.mT @ matrix
    pivots, rows = greedy(gram, n)
    found = PivotedCholesky(gram.clone())
    assert found.pivots(n).tolist() == pivots
    torch.testing.assert_close(found.rows(n), rows, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.rows(n).mT @ found.rows(n), gram, rtol=0, atol=1e-9)
    assert pivots != sorted(pivots) or n < 10  # else nothing would be pivoted


def test_it_can_be_extended() -> None:
    matrix = random(60, 45)
    gram = matrix.mT @ matrix
    once, steps = PivotedCholesky(gram.clone()), PivotedCholesky(gram.clone())
    for rank in (1, 4, BLOCK, BLOCK + 1, 40):
        assert torch.equal(steps.pivots(rank), once.pivots(40)[:rank])
        torch.testing.assert_close(steps.rows(rank), once.rows(40)[:rank], rtol=0, atol=1e-12)
    assert torch.equal(once.pivots(3), steps.pivots(3))  # asking for less is fine


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_what_is_left_of_low_rank_is_nothing(rank: int) -> None:
    matrix = random(30, rank) @ random(rank, 20, seed=1)
    found = PivotedCholesky(matrix.mT @ matrix)
    assert sorted(found.pivots(20).tolist()) == list(range(20))  # each column once
    rows = found.rows(20)
    assert not bool(rows[rank + 1 :].any())
    torch.testing.assert_close(rows.mT @ rows, matrix.mT @ matrix, rtol=0, atol=1e-9)


def test_equal_columns_are_not_taken_twice() -> None:
    matrix = random(10, 1).expand(10, 6)
    found = PivotedCholesky(matrix.mT @ matrix)
    assert sorted(found.pivots(4).tolist()) == sorted(set(found.pivots(4).tolist()))
    assert float(found.rows(1).square().sum()) == pytest.approx(found.total)
