"""Exploration spaces of the layers in Tables 2-5 of Kokhazadeh et al. (2025): counts, solutions, times, memory.

    python benchmarks/exploration.py [--times]

For each layer and method: the rank settings with fewer parameters and fewer MACs, those of the steps of 85, 60 and
25 %, and the seconds of counting them and choosing ten solutions a step (the median of three runs), beside what the
paper gives. Memory is the peak of what one call allocates; the last row has the whole process. With ``--times`` a
second file has the seconds of preparing a layer and factoring it at each step, on Gaussian weights.

The paper does not say which stride and input its layers have. For (3, 3, 256, 512) its text gives 20 % fewer MACs at
60 % fewer parameters for CP, which is a stride of 2; the others have stride 1, where the input's size cancels out.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import tracemalloc
from statistics import median
from typing import Any

import _harness
import rankfold as rf
from rankfold.cost.exploration import Exploration, Space, explore, layer_of

STEPS = (0.85, 0.60, 0.25)
REPEATS = 3
LAYERS = {
    "1D-(3,512,1024)": "conv:3x512x1024",
    "2D-(3,3,256,512)": "conv:3x3x256x512,stride=2",
    "2D-(3,3,512,512)": "conv:3x3x512x512",
    "2D-(5,5,96,256)": "conv:5x5x96x256",
    "2D-(3,3,384,256)": "conv:3x3x384x256",
    "3D-(3,3,3,32,32)": "conv:3x3x3x32x32",
    "(400,120)": "linear:400x120",
    "(512,512)": "linear:512x512",
    "(512,256)": "linear:512x256",
}
CONV, LINEAR = ("tucker", "cp", "tt"), ("svd", "qr", "ttm")
# Tables 2 and 3: solutions of the steps of 85, 60 and 25 %, by method; Tables 4 and 5: seconds.
PAPER_COUNTS = {
    "1D-(3,512,1024)": ((3, 2, 2), (1, 1, 1), (3, 2, 2)),
    "2D-(3,3,256,512)": ((2, 2, 1), (1, 1, 0), (34, 142, 0)),
    "2D-(3,3,512,512)": ((3, 3, 3), (1, 1, 1), (483, 485, 720)),
    "2D-(5,5,96,256)": ((2, 3, 1), (1, 1, 1), (19, 11, 1)),
    "2D-(3,3,384,256)": ((2, 2, 2), (1, 1, 1), (57, 33, 22)),
    "3D-(3,3,3,32,32)": ((3, 3, 3), (1, 1, 1), (423, 115, 0)),
    "(400,120)": ((1, 1, 1), (1, 1, 1), (4, 1, 0)),
    "(512,512)": ((1, 1, 1), (1, 1, 1), (2, 3, 0)),
    "(512,256)": ((1, 1, 1), (1, 1, 1), (6, 2, 0)),
}
PAPER_GENERATION = {
    "1D-(3,512,1024)": (39, 0.1, 48),
    "2D-(3,3,256,512)": (21.6, 0.4, 3724),
    "2D-(3,3,512,512)": (31.7, 0.7, 28872),
    "2D-(5,5,96,256)": (4, 0.4, 598),
    "2D-(3,3,384,256)": (11.1, 0.4, 3390),
    "3D-(3,3,3,32,32)": (0.2, 0.2, 203),
    "(400,120)": (0.1, 0.1, 57),
    "(512,512)": (0.1, 0.1, 313),
    "(512,256)": (0.1, 0.1, 98),
}
PAPER_DECOMPOSITION = {
    "1D-(3,512,1024)": ((51, 229, 402), (3926, 20747, None), (82, 83, 97)),
    "2D-(3,3,256,512)": ((66, 74, 97), (192, 411, None), (29, 50, None)),
    "2D-(3,3,512,512)": ((146, 194, 181), (687, 2495, 3890), (40, 45, 40)),
    "2D-(5,5,96,256)": ((51, 42, 34), (889, 3049, 6554), (28, 8, 22)),
    "2D-(3,3,384,256)": ((62, 79, 103), (1462, 3572, 6819), (9, 20, 42)),
    "3D-(3,3,3,32,32)": ((1, 3, 2), (25, 149, 277), (1, 2, None)),
    "(400,120)": ((0.01, 0.01, 0.01), (0.01, 0.01, 0.01), (0.09, 0.08, None)),
    "(512,512)": ((0.11, 0.1, 0.13), (0.03, 0.04, 0.03), (0.09, 0.24, None)),
    "(512,256)": ((0.05, 0.04, 0.04), (0.02, 0.02, 0.02), (0.1, 0.08, None)),
}


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("exploration", __doc__)
    parser.add_argument("--times", action="store_true", help="also measure decompositions, into exploration_times.json")
    parser.add_argument("--time-methods", default="tucker,cp,tt,svd,qr,ttm", help="of these, with --times")
    args = parser.parse_args()
    _harness.start(args)
    print(_harness.save("exploration", spaces(args), args))
    if args.times:
        args.out = args.out.with_name("exploration_times.json")
        print(_harness.save("exploration_times", decompositions(args), args))


def spaces(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Count every layer's space for its three methods; first for time, then again for memory."""
    import_mib = process_mib()
    cases = [(name, method, i) for name in LAYERS for i, method in enumerate(methods_of(name))]
    explore(layer_of("conv:3x3x8x8"), "tt")  # whatever is imported or set up with the first call
    timed: list[tuple[Space, float]] = []
    for name, method, _ in cases:
        runs = [count(name, method, args.seed) for _ in range(REPEATS)]
        timed.append((runs[0][0], median(seconds for _, seconds in runs)))
    total = sum(seconds for _, seconds in timed)
    whole_mib = process_mib()
    rows: list[dict[str, Any]] = []
    for (name, method, i), (space, seconds) in zip(cases, timed, strict=True):
        tracemalloc.start()
        again, _ = count(name, method, args.seed)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert again == space
        row = {
            "layer": name,
            "method": method,
            "valid settings": space.size,
            "of 85, 60, 25 %": numbers(step.count for step in space.steps),
            "paper's": numbers(PAPER_COUNTS[name][i]),
            "time": f"{seconds:.3f} s",
            "paper's time": f"{PAPER_GENERATION[name][i]:,} s",
            "peak memory": f"{peak:.1f} MiB",
        }
        rows.append(row)
        print("  ".join(map(str, row.values())), flush=True)
    paper_total = sum(sum(seconds) for seconds in PAPER_GENERATION.values())
    rows.append(
        {
            "layer": "all of them",
            "method": "",
            "valid settings": sum(space.size for space, _ in timed),
            "of 85, 60, 25 %": "",
            "paper's": "",
            "time": f"{total:.1f} s",
            "paper's time": f"{paper_total:,.0f} s",
            "peak memory": f"{whole_mib:.0f} MiB, of which {import_mib:.0f} imports",
        }
    )
    return rows


def count(name: str, method: str, seed: int) -> tuple[Space, float]:
    """Return a space with ten solutions a step, and how many seconds it took."""
    start = time.perf_counter()
    space = explore(layer_of(LAYERS[name]), method, Exploration(steps=STEPS, random=7, seed=seed))
    return space, time.perf_counter() - start


def decompositions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time preparing and factoring of every layer at each step's solution of most equal ranks."""
    rows: list[dict[str, Any]] = []
    for name, text in LAYERS.items():
        for i, method in enumerate(methods_of(name)):
            if method not in args.time_methods.split(","):
                continue
            found = rf.analyze(text, methods=method, steps=STEPS, seed=args.seed, bins=None, time=True)
            space = found.layers[0].spaces[0]
            for step, paper in zip(space.steps, PAPER_DECOMPOSITION[name][i], strict=True):
                solution = step.equal_ranks
                row = {
                    "layer": name,
                    "method": method,
                    "step": f"{step.reduction:.0%}",
                    "ranks": "–" if solution is None else numbers(solution.ranks),
                    "prepare": seconds_text(step.prepare_s),
                    "factorize": seconds_text(step.factorize_s),
                    "paper's": "–" if paper is None else f"{paper:,} s",
                }
                rows.append(row)
                print("  ".join(row.values()), flush=True)
    return rows


def methods_of(name: str) -> tuple[str, ...]:
    """Return the paper's three methods for a layer."""
    return CONV if LAYERS[name].startswith("conv") else LINEAR


def numbers(values: Any) -> str:
    """Return numbers as text."""
    return " · ".join(f"{value:,}" for value in values)


def seconds_text(seconds: float | None) -> str:
    """Return a time as text."""
    return "–" if seconds is None else f"{seconds:.3f} s"


def process_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    main()
