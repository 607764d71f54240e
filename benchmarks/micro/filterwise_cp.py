"""Filter-wise CP: one batch against a loop of TensorLy's ``parafac`` over the filters, to equal error."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from benchmarks.micro._timing import Outcome, relative_error
from benchmarks.micro.cp import reach
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks


def race(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks, *, runs: int, seconds: float) -> list[Outcome]:
    """Return rankfold and TensorLy, on as many filters of the weight as the loop finishes in `seconds`.

    TensorLy runs once with its defaults (start by SVD, at most 100 sweeps a filter, tolerance 1e-8). rankfold runs on
    the same filters to that error plus 1e-3, from the weight to the factors.
    """
    import tensorly
    from tensorly.decomposition import parafac

    found: list[Tensor] = []
    start = time.perf_counter()
    for one in weight:
        found.append(tensorly.cp_to_tensor(parafac(one, ranks[0], random_state=0)))
        if time.perf_counter() - start > seconds:
            break
    took = time.perf_counter() - start
    part = weight[: len(found)]
    peer = Outcome(name="loop of tensorly parafac", error=relative_error(torch.stack(found), part), seconds=[took])
    fewer = replace(layer, out_channels=len(found))
    return [reach(method, fewer, part, ranks, peer.error, runs=runs, seconds=seconds), peer]
