"""rankfold against TensorLy, method by method: one process, same weight, ranks and data type.

    python -m benchmarks.micro --threads 2 [--methods tucker tt svd qr qr_plain cp filterwise_cp] [--quick]

Writes benchmarks/results/micro_METHOD.json. The timer holds everything from the weight in torch's layout to the
factors; see `benchmarks.micro._timing`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks import _harness
from benchmarks.micro import cp, filterwise_cp, qr, svd, tt, tucker
from benchmarks.micro._shapes import REDUCTIONS, SHAPES, WEIGHTS, Shape, ranks_for, weight
from benchmarks.micro._timing import Contender, Outcome, race
from torch import Tensor

from rankfold import methods
from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks

CONTESTS: dict[str, Callable[[Method, LayerInfo, Tensor, Ranks], list[Contender]]] = {
    "tucker": tucker.contenders,
    "tt": tt.contenders,
    "svd": svd.contenders,
    "qr": qr.pivoted,
    "qr_plain": qr.plain,
}
"""What runs for each method: rankfold first, then its peers."""

OPTIONS = {"qr_plain": ("qr", {"pivoting": False})}
"""Method and options of what is not a method's name with its defaults."""

TO_EQUAL_ERROR: dict[str, Callable[..., list[Outcome]]] = {"cp": cp.race, "filterwise_cp": filterwise_cp.race}
"""What runs for iterative methods without a common stopping rule: seconds to the error that the peer ends with."""

EQUAL_RANKS = ("tt",)
"""Methods whose ranks are the same number at every bond; of the others each is the same share of its limit."""

METHODS = [*CONTESTS, *TO_EQUAL_ERROR]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def main() -> None:
    """Measure, print and save."""
    args = arguments().parse_args()
    _harness.start(args)
    import tensorly

    tensorly.set_backend("pytorch")
    folder: Path = args.out if args.out.suffix == "" else args.out.parent
    for name in args.methods:
        rows = [
            row
            for dtype in args.dtypes
            for shape in SHAPES
            if not args.shapes or shape.name in args.shapes
            for row in measure(name, shape, dtype, args)
        ]
        if not rows:
            sys.exit(f"no shape fits {name}")
        print(f"\n{name}: {summary(rows)}\n", flush=True)
        one = argparse.Namespace(**{**vars(args), "out": folder / f"micro_{name}.json", "methods": [name]})
        print(_harness.save("micro", rows, one))


def arguments() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = _harness.parser("micro", __doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shapes", nargs="*", help="names such as 3x3x64x128; default: all")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--reductions", nargs="+", type=float, default=list(REDUCTIONS))
    parser.add_argument("--runs", type=int, default=7, help="most rounds for each row")
    parser.add_argument("--seconds", type=float, default=6.0, help="no new round of a row begins after these")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: of the process; for one thread")
    parser.add_argument("--quick", action="store_true", help="one round a row: for a look, not for a result")
    return parser


def measure(name: str, shape: Shape, dtype: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each weight and reduction of one shape; none if the method does not fit it."""
    method, layer, rows = methods.get(*OPTIONS.get(name, (name, None))), shape.layer, []
    if method.supports(layer) is not None:
        return []
    for kind in args.weights:
        tensor = weight(shape, kind, seed=args.seed, dtype=DTYPES[dtype])
        for reduction in args.reductions:
            ranks = ranks_for(method, layer, reduction, equal=name in EQUAL_RANKS)
            runs = 1 if args.quick else args.runs
            if name in TO_EQUAL_ERROR:
                us, *peers = TO_EQUAL_ERROR[name](method, layer, tensor, ranks, runs=runs, seconds=args.seconds)
            else:
                contest, clock = CONTESTS[name](method, layer, tensor, ranks), CLOCKS[args.clock]
                us, *peers = race(contest, tensor, runs=runs, budget=args.seconds, clock=clock)
            row = {
                "shape": shape.name, "source": shape.source, "weight": kind, "dtype": dtype,
                "reduction": reduction, "ranks": list(ranks),
                "seconds": us.median, "error": us.error, "runs": len(us.seconds),
                "peers": [
                    {"name": p.name, "seconds": p.median, "error": p.error, "ratio": p.median / us.median}
                    for p in peers
                ],
            }  # fmt: skip
            rows.append(row)
            print(line(name, row), flush=True)
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """Return one row in words."""
    peers = "  ".join(
        f"{p['name']} {p['seconds'] * 1e3:.1f} ms ({p['ratio']:.1f}x, error {p['error'] - row['error']:+.1e})"
        for p in row["peers"]
    )
    head = f"{name} {row['shape']} {row['weight']} {row['dtype']} -{row['reduction']:.0%} {tuple(row['ranks'])}"
    return f"{head}: {row['seconds'] * 1e3:.2f} ms, error {row['error']:.4f}; {peers}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return medians and extremes, peer by peer."""
    words = []
    for k, peer in enumerate(rows[0]["peers"]):
        ratios = [row["peers"][k]["ratio"] for row in rows]
        worse = max(row["error"] - row["peers"][k]["error"] for row in rows)
        words.append(
            f"{peer['name']}: median {statistics.median(ratios):.1f}x, least {min(ratios):.2f}x, "
            f"error at most {worse:+.1e} of theirs, {len(rows)} rows"
        )
    return "; ".join(words)


if __name__ == "__main__":
    main()
