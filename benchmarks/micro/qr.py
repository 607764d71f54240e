"""Truncated QR: rankfold (column-pivoted) against TensorLy's ``tl.qr`` (not pivoted) and SciPy's pivoted one.

SciPy's is the like-for-like peer: without pivoting the error is that of dropping arbitrary columns.
"""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch
from benchmarks.micro._timing import Contender, ours
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def contenders(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold, TensorLy and SciPy (LAPACK's geqp3; NumPy's view of the weight is free)."""
    import tensorly

    matrix, rank = weight.flatten(1), ranks[0]

    def plain() -> Any:
        q, r = tensorly.qr(matrix)
        return q[:, :rank], r[:rank]

    def pivoted() -> Any:
        found: Any = scipy.linalg.qr(matrix.numpy(), mode="economic", pivoting=True)
        q, r, order = found
        whole = r[:rank].copy()
        whole[:, order] = r[:rank]
        return torch.from_numpy(q[:, :rank]), torch.from_numpy(whole)

    def dense(found: Any) -> Tensor:
        return found[0].double() @ found[1].double()

    return [
        ours(method, layer, weight, ranks),
        Contender(name="tensorly qr", run=plain, dense=dense),
        Contender(name="scipy pivoted qr", run=pivoted, dense=dense),
    ]
