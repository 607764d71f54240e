"""CP: seconds until the error that TensorLy's ``parafac`` ends with is reached, within 1e-3."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.micro._timing import Outcome, ours, relative_error
from torch import Tensor

from rankfold import methods
from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks

WITHIN = 1e-3
"""Equal quality: our error is at most this above theirs."""


def race(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks, *, runs: int, seconds: float) -> list[Outcome]:
    """Return rankfold and TensorLy.

    TensorLy runs once, with its defaults (start by SVD, at most 100 sweeps, tolerance 1e-8), but begins no sweep after
    `seconds`. rankfold then runs with that error plus `WITHIN` as its target, from the weight to the factors, the
    start's decompositions included.
    """
    peer = tensorly_parafac(weight, ranks[0], seconds)
    return [reach(method, layer, weight, ranks, peer.error, runs=runs, seconds=seconds), peer]


def reach(
    method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks, error: float, *, runs: int, seconds: float
) -> Outcome:
    """Return rankfold's seconds to `error` plus `WITHIN`, after one untimed run."""
    contender = ours(methods.get(method.name, {"target": error + WITHIN}), layer, weight, ranks)
    outcome = Outcome(name=contender.name, error=relative_error(contender.dense(contender.run()), weight))
    start = time.perf_counter()
    while len(outcome.seconds) < runs and (not outcome.seconds or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        contender.run()
        outcome.seconds.append(time.perf_counter() - before)
    return outcome


def tensorly_parafac(tensor: Tensor, rank: int, seconds: float) -> Outcome:
    """Run ``parafac`` once."""
    import tensorly
    from tensorly.decomposition import parafac

    start = time.perf_counter()

    def stop(_: Any, __: Any) -> bool:
        return time.perf_counter() - start > seconds

    found = parafac(tensor, rank, random_state=0, callback=stop)
    took = time.perf_counter() - start
    dense: Any = tensorly.cp_to_tensor((None, [f.double() for f in found.factors]))
    return Outcome(name="tensorly parafac", error=relative_error(dense, tensor), seconds=[took])
