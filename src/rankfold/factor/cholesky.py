"""Pivoted Cholesky decomposition of a Gram matrix, as far as it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 200
"""Up to this size the remainder is updated after every pivot, above it after each block of `BLOCK` pivots."""

BLOCK = 16


class PivotedCholesky:
    """The greedy decomposition ``G = R^T R`` (Higham 2002, section 10.3), extended when a larger rank is asked for.

    Each pivot is the largest remaining diagonal entry: of ``G = M^T M`` that is the column of M that is worst
    represented by those before, so R is that of the column-pivoted QR of M. torch has no such routine; this one stops
    at the rank that is wanted. Each pivot is read back from the device once.

    Parameters
    ----------
    gram_matrix : Tensor
        ``(n, n)``, symmetric positive semidefinite; overwritten.
    """

    def __init__(self, gram_matrix: Tensor) -> None:
        n = gram_matrix.shape[-1]
        self.rows = gram_matrix.new_zeros(n, n)
        self._rest = gram_matrix
        self._block = 1 if n <= SMALL else BLOCK
        diagonal = gram_matrix.diagonal()
        self._left = diagonal if self._block == 1 else diagonal.clone()  # the view follows the updates
        self.total = float(diagonal.sum())
        self._least = torch.finfo(gram_matrix.dtype).eps * self.total
        self._pivots: list[int] = []
        self._since = 0  # pivots that the remainder knows of

    def pivots(self, rank: int) -> Tensor:
        """Return the first `rank` pivots, ``(rank,)``."""
        self._extend(rank)
        return torch.tensor(self._pivots[:rank], device=self.rows.device)

    def left_out(self, rank: int) -> float:
        """Return the trace of what the first `rank` rows leave."""
        self._extend(rank)
        return self.total - float(self.rows[:rank].square().sum())

    def _extend(self, rank: int) -> None:
        while len(self._pivots) < rank:
            done = len(self._pivots)
            largest, where = self._left.max(0)
            value, pivot = largest.item(), int(where.item())
            if value <= self._least:  # nothing is left: any pivots will do, and their rows are zero
                unused = sorted(set(range(len(self._left))) - set(self._pivots))
                self._pivots += unused[: rank - done]
                return
            row = self._rest[pivot]
            if done > self._since:
                new = self.rows[self._since : done]
                row = torch.addmv(row, new.mT, new[:, pivot], alpha=-1)
            row = torch.mul(row, value**-0.5, out=self.rows[done])
            self._pivots.append(pivot)
            if self._block == 1:
                self._rest.addr_(row, row, alpha=-1)
                self._since = done + 1
                continue
            self._left.addcmul_(row, row, value=-1)
            if done + 1 - self._since == self._block:
                new = self.rows[self._since : done + 1]
                self._rest.addmm_(new.mT, new, alpha=-1)
                self._since = done + 1
