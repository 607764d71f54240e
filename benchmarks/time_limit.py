r"""Time of the default search on five networks, and whether it keeps within its limit; plans of several proxies.

    RANKFOLD_DATA=... python benchmarks/time_limit.py --threads 2 [--networks vit] [--limits 300 30]
    RANKFOLD_DATA=... python benchmarks/time_limit.py --threads 2 --networks resnet20 encoder pitch --limits 300 \
        --proxies auto fisher+network fisher network weight uniform

For each network, limit (0 is none) and proxy: `rf.plan` for half of the parameters with default options but the proxy.
Stated are the forecast of the chosen setting, the seconds of `rf.plan` from its call to its return, whether they are
within 120 % of the limit, its peak memory, its setting, and, if it is not the best one, the best one with its forecast;
where the weights are trained, also the seconds of `rf.apply` and the agreement with the original on held-out data. The
networks are those of `_networks.py`. Every row runs in a separate process; rows in the result file are not measured
again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import _harness
import _networks
import rankfold as rf
from rankfold.candidates.proxies import PROXIES

NETWORKS = ("resnet20", "encoder", "pitch", "resnet18", "vit")
KEPT = 1.2
"""Share of the limit up to which it counts as kept."""


def main() -> None:
    """Measure what is missing, each row in a separate process, or one row."""
    parser = _harness.parser("time_limit", __doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="networks to search")
    parser.add_argument("--limits", type=float, nargs="+", default=[300, 30], help="seconds")
    parser.add_argument("--proxies", nargs="+", default=["auto"], choices=PROXIES, help="proxies to search with")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    _harness.start(args)
    if args.row is not None:
        print(json.dumps(measure(args.row[0], float(args.row[1]) or None, args.row[2], args.seed)))
        return
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for limit, network, proxy in itertools.product(args.limits, args.networks, args.proxies):
        key = (network, limit or None, proxy)
        if any((row["network"], row["limit_s"], row.get("proxy", "auto")) == key for row in rows):
            continue
        rows.append(_harness.in_new_process(__file__, args, "--row", network, str(limit), proxy))
        print(rows[-1], flush=True)
        _harness.save("time_limit", rows, args)


def measure(network: str, limit: float | None, proxy: str, seed: int) -> dict[str, Any]:
    """Return the figures of one search."""
    data = os.environ.get("RANKFOLD_DATA")
    case = _networks.load(network, seed, None if data is None else Path(data))
    start, cpu = time.perf_counter(), time.process_time()
    with _networks.forecasts() as settings:
        plan = rf.plan(
            case.model,
            case.example,
            budget=case.budget(50),
            calibration=case.calibration,
            seed=seed,
            time_limit=limit,
            strategy=rf.CompressNAS(proxy=proxy),
        )
    planned = time.perf_counter()
    ((chosen, best),) = settings
    timed = {
        "forecast_s": round(chosen.seconds, 1),
        "search_s": round(planned - start, 1),
        "kept": None if limit is None else planned - start <= KEPT * limit,
        "cpu_s": round(time.process_time() - cpu, 1),
    }
    row = {
        "network": network,
        "params": sum(p.numel() for p in case.model.parameters()),
        "limit_s": limit,
        "proxy": proxy,
        **timed,
        "peak_mib": _harness.peak_mib(),
        "settings": {key: plan.provenance.config[key] for key in ("samples", "points", "moment_samples")}
        | {"proxy": plan.provenance.search["proxy"]},
        "given_up": None if chosen == best else str(best),
    }
    if case.quality is None:
        return row
    small = rf.apply(case.model, plan, case.calibration).eval()
    return row | {"apply_s": round(time.perf_counter() - planned, 1), "quality": case.quality(small)}


if __name__ == "__main__":
    main()
