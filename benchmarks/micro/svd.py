"""Truncated SVD of the channel matrix: rankfold against TensorLy's ``svd_interface``."""

from __future__ import annotations

from typing import Any

from benchmarks.micro._timing import Contender, ours
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def contenders(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold and TensorLy (``method="truncated_svd"``, its default)."""
    from tensorly.tenalg import svd_interface

    def run() -> Any:
        return svd_interface(weight.flatten(1), method="truncated_svd", n_eigenvecs=ranks[0])

    def dense(found: Any) -> Tensor:
        left, values, right = (part.double() for part in found)
        return (left * values) @ right

    return [ours(method, layer, weight, ranks), Contender(name="tensorly truncated_svd", run=run, dense=dense)]
