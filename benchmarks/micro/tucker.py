"""Tucker-2 of the channel modes: rankfold's HOOI against TensorLy's ``partial_tucker`` with its defaults."""

from __future__ import annotations

from typing import Any

from benchmarks.micro._timing import Contender, ours
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def contenders(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> list[Contender]:
    """Return rankfold and TensorLy (``init="svd"``, at most 100 sweeps, tolerance 1e-4: its defaults)."""
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import core_tenalg

    def run() -> Any:
        return partial_tucker(weight, rank=list(ranks), modes=[0, 1])

    def dense(found: Any) -> Tensor:
        core, factors = found[0]
        return core_tenalg.multi_mode_dot(core.double(), [f.double() for f in factors], modes=[0, 1])

    return [ours(method, layer, weight, ranks), Contender(name="tensorly partial_tucker", run=run, dense=dense)]
