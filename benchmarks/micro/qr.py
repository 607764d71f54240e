"""Truncated QR: rankfold against SciPy where columns are pivoted, and against TensorLy, which does not pivot."""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch
from benchmarks.micro._timing import Contender, ours
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def pivoted(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold and SciPy (LAPACK's geqp3; NumPy's view of the weight is free)."""
    rank = ranks[0]

    def run() -> Any:
        found: Any = scipy.linalg.qr(weight.flatten(1).numpy(), mode="economic", pivoting=True)
        q, r, order = found
        whole = r[:rank].copy()
        whole[:, order] = r[:rank]
        return torch.from_numpy(q[:, :rank]), torch.from_numpy(whole)

    return [ours(method, layer, weight, ranks), Contender(name="scipy pivoted qr", run=run, dense=product)]


def plain(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold (``pivoting=False``) and TensorLy's backend, of whose result the first columns are kept."""
    import tensorly

    def run() -> Any:
        q, r = tensorly.qr(weight.flatten(1))
        return q[:, : ranks[0]], r[: ranks[0]]

    return [ours(method, layer, weight, ranks), Contender(name="tensorly qr", run=run, dense=product)]


def product(found: Any) -> Tensor:
    """Multiply the factors out."""
    return found[0].double() @ found[1].double()
