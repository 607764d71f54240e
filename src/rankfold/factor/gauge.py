"""Gauge fixing of a matrix: r of its rows become the identity, and the other factor of the product compensates.

Between two factors, any invertible r x r matrix can be moved from one to the other without changing their product. This
freedom is the gauge; fixing it saves r^2 parameters. Any ``M`` with r columns is ``E T``, where ``T`` consists of r of
its rows and ``E`` is the identity in these rows. The size of the other entries of ``E`` depends on the choice of rows:
for the rows of largest volume, none exceeds 1 (Goreinov, Oseledets, Savostyanov, Tyrtyshnikov & Zamarashkin 2010, "How
to find a good submatrix").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BOUND = 1.1
"""Rows are exchanged until no entry of `Gauge.rest` exceeds this magnitude."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """``M = E T`` with ``E[pivots] = I`` and ``E[others] = rest``, for a batch of matrices ``M (batch, m, r)``.

    Parameters
    ----------
    rest : Tensor
        ``(batch, m - r, r)``.
    transfer : Tensor
        ``T (batch, r, r)``, to be multiplied into the other factor of the product.
    pivots, others : Tensor
        Row indices ``(batch, r)`` and ``(batch, m - r)``, both ascending.
    condition : float
        The largest condition number of the pivots' block in an orthonormal basis of the columns, by which the gauge
        amplifies rounding. At most ``sqrt(1 + r (m - r) BOUND^2)`` once the exchange has converged.
    """

    rest: Tensor
    transfer: Tensor
    pivots: Tensor
    others: Tensor
    condition: float


def gauge(matrix: Tensor) -> Gauge:
    """Choose r rows of large volume and write the matrix in terms of them.

    The rows are chosen in an orthonormal basis of the columns (which Householder reflections complete if columns are
    linearly dependent or zero), so the condition of the matrix itself does not matter.

    Parameters
    ----------
    matrix : Tensor
        ``(batch, m, r)``, ``m >= r``.

    Examples
    --------
    >>> import torch
    >>> made = gauge(torch.tensor([[[2.0, 0.0], [0.0, 3.0], [4.0, 6.0]]]).double())
    >>> made.pivots.tolist(), made.transfer[0].tolist()
    ([[0, 2]], [[2.0, 0.0], [4.0, 6.0]])
    >>> made.rest.round(decimals=3).tolist()
    [[[-1.0, 0.5]]]
    """
    basis = torch.linalg.qr(matrix).Q
    chosen = [_large_volume(q) for q in basis]
    pivots = torch.stack([torch.sort(rows).values for rows in chosen])
    r, m = matrix.shape[-1], matrix.shape[-2]
    free = torch.ones(matrix.shape[:-1], dtype=torch.bool, device=matrix.device).scatter_(1, pivots, False)
    others = free.nonzero()[:, 1].reshape(matrix.shape[0], m - r)
    block = _rows(basis, pivots)
    values = torch.linalg.svdvals(block)
    return Gauge(
        rest=torch.linalg.solve(block, _rows(basis, others), left=False),
        transfer=_rows(matrix, pivots),
        pivots=pivots,
        others=others,
        condition=float((values[..., 0] / values[..., -1]).max()),
    )


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def _large_volume(basis: Tensor) -> Tensor:
    """Return r rows of ``(m, r)``: those of Gaussian elimination with row pivoting, improved by exchanges.

    Each exchange multiplies the volume by more than `BOUND`, so the loop terminates; the limit on the number of
    exchanges only guards against rounding.
    """
    m, r = basis.shape
    order = list(range(m))
    for k, pivot in enumerate(torch.linalg.lu_factor(basis).pivots.tolist()):
        order[k], order[pivot - 1] = order[pivot - 1], order[k]
    rows = torch.tensor(order[:r], device=basis.device)
    if m == r:
        return rows
    entries = torch.linalg.solve(basis[rows], basis, left=False)
    for _ in range(10 * r):
        row, column = divmod(int(entries.abs().argmax()), r)
        size = entries[row, column].clone()
        if not float(size.abs()) > BOUND:
            break
        change = entries[row].clone()
        change[column] -= 1
        entries -= torch.outer(entries[:, column] / size, change)
        rows[column] = row
    return rows
