"""A sentence encoder compressed with default options: time, memory, forecast, and quality against simpler ways.

    python benchmarks/encoder.py --threads 2 [--rows "compressnas 50"]

all-MiniLM-L6-v2 with its trained weights (`_networks.py`); budgets count the parameters of the encoder's layers. 360
unlabeled sentences; quality is measured on 512 others: the mean cosine similarity of the embeddings to the original's,
and the relative squared error of the token outputs. `uniform` and `energy` factor by whitened SVD, each layer on its
own. `compressnas` has its default options; `30 s` is time_limit=30, `sequential` adds sequential reconstruction, and
`thorough` measures 32 candidates of every layer with 256 samples, about ten times the work (only if named by
``--rows``; interrupted, it resumes after the last layer). Every row runs in a separate process; rows in the result file
are not measured again. Seconds are those of `rf.compress`, with the forecast of the search that they contain; later
rows of one search reuse its measurements, so that only the first one has them.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import _harness
import _networks
import rankfold as rf

OPTIONS: dict[str, dict[str, Any]] = {
    "compressnas": {},
    "compressnas, sequential": {"reconstruct": "sequential"},
    "compressnas, 30 s": {"time_limit": 30},
    "compressnas, thorough": {"strategy": rf.CompressNAS(proxy="network", samples=256, points=32), "time_limit": None},
    "uniform": {"strategy": "uniform", "methods": "svd"},
    "energy": {"strategy": "energy", "methods": "svd"},
}
SETTINGS = ("proxy", "samples", "points", "moment_samples")
ROWS = [
    *(f"{name} {left}" for left in (50, 75, 35) for name in ("compressnas", "uniform", "energy")),
    *(f"compressnas, {kind} {left}" for kind in ("30 s", "sequential") for left in (50, 75, 35)),
]


def main() -> None:
    """Measure what is missing, each row in a separate process, or one row."""
    parser = _harness.parser("encoder", __doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="NAME LEFT", help="rows to measure")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    _harness.start(args)
    if args.row is not None:
        print(json.dumps(measure(args.row, args)))
        return
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for row in args.rows:
        if any(f"{known['strategy']} {known['left']:g}" == row for known in rows):
            continue
        rows.append(_harness.in_new_process(__file__, args, "--row", row))
        print(rows[-1], flush=True)
        _harness.save("encoder", rows, args)


def measure(row: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one row."""
    name, _, left = row.rpartition(" ")
    case = _networks.load("encoder", args.seed, None)
    assert case.quality is not None
    options = dict(OPTIONS[name])
    kind = name.partition(", ")[2].replace("sequential", "")
    cache = args.out.parent / ".cache" / f"encoder {kind}".strip()
    fresh = not cache.exists()
    if name.startswith("compressnas"):
        options["cache"] = cache
    cpu = time.process_time()
    with _networks.forecasts() as settings:
        result = rf.compress(
            case.model,
            case.example,
            budget=case.budget(float(left)),
            calibration=case.calibration,
            seed=args.seed,
            **options,
        )
    cpu, peak, small = time.process_time() - cpu, _harness.peak_mib(), result.model.eval()
    spent = result.report.timings
    timed = {
        "seconds": round(sum(spent.values()), 1),
        "cpu_s": round(cpu, 1),
        "search_s": round(spent["calibrate"] + spent["plan"], 1),
        "forecast_s": round(sum(chosen.seconds for chosen, _ in settings), 1),
        "peak_mib": peak,
    }
    params = [sum(p.numel() for p in m.get_submodule(case.part).parameters()) for m in (case.model, small)]
    return {
        "strategy": name,
        "left": float(left),
        "share": round(params[1] / params[0], 4),
        **case.quality(small),
        **(timed if fresh or not name.startswith("compressnas") else {}),
        "settings": {
            key: result.plan.provenance.config.get(key) for key in ("proxy", "samples", "points", "moment_samples")
        },
        "search": dict(result.plan.provenance.search),
    }


if __name__ == "__main__":
    main()
