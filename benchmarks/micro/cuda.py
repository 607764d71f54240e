"""The same kernels on a CUDA device: the same factors, and how long they take.

    python -m benchmarks.micro.cuda [--methods ...] [--shapes ...]

Factors are unique only up to signs and order (of Tucker and of the tensor train up to rotations), so what is compared
is what does not depend on them: the weight they compose, and the singular values of each. Writes
benchmarks/results/micro_cuda.json; without a device it says so and exits with 2.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from benchmarks import _harness
from benchmarks.micro._shapes import SHAPES, Shape, ranks_for, weight
from benchmarks.micro._timing import ours, relative_error
from torch import Tensor

from rankfold import methods

REDUCTION = 0.6


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("micro_cuda", __doc__)
    parser.add_argument("--methods", nargs="+", choices=methods.registry.names(), default=methods.registry.names())
    parser.add_argument("--shapes", nargs="*", help="names such as 3x3x64x128; default: all")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured, nothing written", file=sys.stderr)
        sys.exit(2)
    _harness.start(args)
    rows = []
    for name in args.methods:
        for shape in SHAPES:
            if methods.get(name).supports(shape.layer) is None and (not args.shapes or shape.name in args.shapes):
                rows.append(measure(name, shape, args.seed, args.runs))
                print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()))
    print(_harness.save("micro_cuda", rows, args))


def measure(name: str, shape: Shape, seed: int, runs: int) -> dict[str, Any]:
    """Return the row of one method and shape."""
    method, layer = methods.get(name), shape.layer
    here = weight(shape, "decaying", seed=seed)
    there = here.cuda()
    ranks = ranks_for(method, layer, REDUCTION)
    contenders = ours(method, layer, here, ranks), ours(method, layer, there, ranks)
    factors = [contender.run() for contender in contenders]  # the warm-up
    dense = [c.dense(f).cpu() for c, f in zip(contenders, factors, strict=True)]
    seconds: list[list[float]] = [[], []]
    for _ in range(runs):
        for contender, times in zip(contenders, seconds, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            contender.run()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return {
        "method": name,
        "shape": shape.name,
        "ranks": list(ranks),
        "cpu_seconds": statistics.median(seconds[0]),
        "cuda_seconds": statistics.median(seconds[1]),
        "cpu_error": relative_error(dense[0], here),
        "cuda_error": relative_error(dense[1], here),
        "weights_apart": relative_error(dense[1], dense[0]),
        "spectra_apart": max(spectrum_apart(a, b.cpu()) for a, b in zip(*factors, strict=True)),
    }


def spectrum_apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two factors' singular values, relative to the largest value."""
    values = [torch.linalg.svdvals(factor.double().flatten(1)) for factor in (one, other)]
    return float((values[0] - values[1]).abs().max() / values[0].max())


if __name__ == "__main__":
    main()
