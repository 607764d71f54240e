"""Pivoted Cholesky decomposition of a Gram matrix, computed up to the requested rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 16
"""Number of pivots after which the remainder is updated by one matrix product."""


class PivotedCholesky:
    """The greedy decomposition ``G = R^T R`` (Higham 2002, section 10.3), extended when a larger rank is requested.

    Each pivot is the largest remaining diagonal entry. For ``G = M^T M`` that is the column of M that the previous ones
    represent worst, so R is that of the column-pivoted QR of M. torch has no such routine. Each pivot is read back from
    the device.

    Parameters
    ----------
    gram_matrix : Tensor
        ``(n, n)``, symmetric positive semidefinite; overwritten.
    """

    def __init__(self, gram_matrix: Tensor) -> None:
        self.total = float(gram_matrix.diagonal().sum())
        self._rest = gram_matrix
        self._left = _array(gram_matrix.diagonal().clone())
        self._least = torch.finfo(gram_matrix.dtype).eps * self.total
        self._panels: list[Tensor] = []
        self._pivots: list[int] = []
        self.exhausted = False
        """Whether more pivots were requested than the rank of the matrix; the rows beyond it are zero."""

    def pivots(self, rank: int) -> Tensor:
        """Return the first `rank` pivots, ``(rank,)``."""
        self._extend(rank)
        return torch.tensor(self._pivots[:rank], device=self._rest.device)

    def rows(self, rank: int) -> Tensor:
        """Return the first `rank` rows of R, ``(rank, n)``, padded with zeros."""
        self._extend(rank)
        rows = torch.cat([self._rest.new_zeros(0, len(self._rest)), *self._panels])[:rank]
        return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])

    def _extend(self, rank: int) -> None:
        rest, left = _array(self._rest), self._left
        while len(self._pivots) < rank:
            pivot = int(left.argmax())
            value = float(left[pivot])
            if value <= self._least:  # the remainder is zero, so any pivots will do
                self.exhausted = True
                unused = sorted(set(range(len(left))) - set(self._pivots))
                self._pivots += unused[: rank - len(self._pivots)]
                return
            place = len(self._pivots) % BLOCK
            if place == 0:  # subtract the last panel from the remainder
                if self._panels:
                    self._rest.addmm_(self._panels[-1].mT, self._panels[-1], alpha=-1)
                self._panels.append(self._rest.new_zeros(BLOCK, len(left)))
            panel = _array(self._panels[-1])
            known = panel[:place]
            row = (rest[pivot] - known[:, pivot] @ known) * value**-0.5
            panel[place] = row
            left -= row * row
            self._pivots.append(pivot)


def _array(tensor: Tensor) -> Any:
    """Return a NumPy array of the same memory on the CPU, where its operations on vectors take a fifth of the time."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
