"""Tensor train ``(I, K1, ..., Kd, O)``: rankfold's TT-SVD against TensorLy's ``tensor_train``."""

from __future__ import annotations

from typing import Any

from benchmarks.micro._timing import Contender, ours
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def contenders(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold and TensorLy; both start from torch's layout and move the output mode last."""
    import tensorly
    from tensorly.decomposition import tensor_train

    def run() -> Any:
        train: Any = tensor_train
        return train(weight.movedim(0, -1), rank=[1, *ranks, 1])

    def dense(found: Any) -> Tensor:
        whole: Any = tensorly.tt_to_tensor([core.double() for core in found])
        return whole.movedim(-1, 0)

    return [ours(method, layer, weight, ranks), Contender(name="tensorly tensor_train", run=run, dense=dense)]
