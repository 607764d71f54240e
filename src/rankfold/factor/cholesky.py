"""Pivoted Cholesky decomposition of a Gram matrix, computed up to the requested rank."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rankfold.factor.linalg import balanced_columns, gram

BLOCK = 32
"""Number of pivots after which the remainder is updated by one matrix product."""


class Cholesky(Protocol):
    """A pivoted Cholesky decomposition ``M^T M = R^T R`` of a matrix's Gram matrix (Higham 2002, section 10.3).

    Each pivot is the largest remaining diagonal entry, which belongs to the column of M that the previous ones
    represent worst: R is that of the column-pivoted QR of M. Rows and factors are exact only as long as the share
    `left_out` is far above the rounding error.
    """

    def pivots(self, rank: int) -> Tensor:
        """Return the first `rank` pivots, ``(rank,)``."""
        ...

    def rows(self, rank: int) -> Tensor:
        """Return the first `rank` rows of R, ``(rank, n)``, padded with zeros."""
        ...

    def left_out(self, rank: int) -> float:
        """Return the share of the trace that the first `rank` rows leave out; 0 beyond the rank of the matrix."""
        ...

    def basis(self, rank: int) -> Tensor:
        """Return the pivot columns, made orthonormal by the triangle of R, ``(m, rank)``."""
        ...

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the basis and the rows as balanced factors."""
        ...


class PivotedCholesky:
    """The decomposition in torch, which has no such routine; extended when a larger rank is requested.

    Each pivot is read back from the device.

    Parameters
    ----------
    matrix : Tensor
        ``(m, n)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix, self._rest = matrix, gram(matrix.mT)
        self._total = float(self._rest.diagonal().sum())
        self._left = _array(self._rest.diagonal().clone())
        self._least = torch.finfo(matrix.dtype).eps * self._total
        self._rows = matrix.new_zeros(min(matrix.shape), matrix.shape[1])
        self._pivots: list[int] = []
        self._rank: int | None = None  # of the matrix, once more pivots were requested

    def pivots(self, rank: int) -> Tensor:
        """Return the first `rank` pivots, ``(rank,)``."""
        self._extend(rank)
        return torch.tensor(self._pivots[:rank], device=self._rest.device)

    def rows(self, rank: int) -> Tensor:
        """Return the first `rank` rows of R, ``(rank, n)``, padded with zeros."""
        self._extend(rank)
        return self._rows[:rank]

    def left_out(self, rank: int) -> float:
        """Return the share of the trace that the first `rank` rows leave out; 0 beyond the rank of the matrix."""
        rows = self.rows(rank)
        if self._rank is not None and rank > self._rank:
            return 0.0
        return 1 - torch.linalg.vector_norm(rows).item() ** 2 / self._total

    def basis(self, rank: int) -> Tensor:
        """Return the pivot columns, made orthonormal by the triangle of R, ``(m, rank)``."""
        pivots = self.pivots(rank)
        triangle, columns = self.rows(rank).index_select(1, pivots), self._matrix.index_select(1, pivots)
        return torch.linalg.solve_triangular(triangle, columns, upper=True, left=False)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the basis and the rows as balanced factors."""
        return balanced_columns(self.basis(rank), self.rows(rank))

    def _extend(self, rank: int) -> None:
        rest, left, rows = _array(self._rest), self._left, _array(self._rows)
        while len(self._pivots) < rank:
            pivot = int(left.argmax())
            value = float(left[pivot])
            if value <= self._least:  # the remainder is zero, so any pivots will do
                self._rank = len(self._pivots) if self._rank is None else self._rank
                unused = sorted(set(range(len(left))) - set(self._pivots))
                self._pivots += unused[: rank - len(self._pivots)]
                return
            number = len(self._pivots)
            start = number - number % BLOCK
            if number == start > 0:  # subtract the last block from the remainder
                block = self._rows[start - BLOCK : start]
                self._rest.addmm_(block.mT, block, alpha=-1)
            known = rows[start:number]
            row = (rest[pivot] - known[:, pivot] @ known) * value**-0.5
            rows[number] = row
            left -= row * row
            self._pivots.append(pivot)


def _array(tensor: Tensor) -> Any:
    """Return a NumPy array of the same memory on the CPU, where its operations on vectors take a fifth of the time."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
