"""Predict the error of every candidate of every layer of a network: seconds and peak memory.

    python benchmarks/table.py --threads 2 [--network torchvision/resnet18]

The work is done in a fresh process. `seconds` holds the candidate table alone (costs and errors of all settings of svd,
tucker and tt, weight proxy); `peak_mib` is the highest resident memory of that whole process: the interpreter,
torch, the network and its inspection included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import _harness
import rankfold as rf
from rankfold.candidates import TableConfig, build_table
from rankfold.cost import Pricing
from rankfold.inventory import layer_weight

METHODS = ("svd", "tucker", "tt")


def main() -> None:
    """Measure in a child process, print and save."""
    parser = _harness.parser("table", __doc__)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--points", type=int, default=64, help="about how many values each rank takes")
    parser.add_argument("--child", action="store_true", help="measure in this process and print the row")
    args = parser.parse_args()
    if args.child:
        _harness.start(args)
        print(json.dumps(measure(args.network, args.seed, args.points)))
        return
    _harness.start(args)
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    row = json.loads(done.stdout)
    _harness.table({args.network: row})
    print(_harness.save("table", [row], args))


def measure(network: str, seed: int, points: int) -> dict[str, Any]:
    """Return the row of one network."""
    model, inputs = rf.zoo.create(network, seed=seed), rf.zoo.example_input(network)
    inventory = rf.inspect(model, inputs)
    before = peak_mib()
    start = time.perf_counter()
    table = build_table(
        Pricing.of(inventory), lambda name: layer_weight(model, name), TableConfig(methods=METHODS, points=points)
    )
    seconds = time.perf_counter() - start
    settings = {name: Counter(c.method for c in row) for name, row in table.rows.items()}
    return {
        "network": network,
        "layers": len(table.rows),
        "settings": sum(sum(counts.values()) for counts in settings.values()),
        "fewest_settings_of_a_layer": min(sum(counts.values()) for counts in settings.values()),
        "fewest_settings_of_a_method": min(min(counts.values()) for counts in settings.values()),
        "seconds": round(seconds, 2),
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
    }


def peak_mib() -> float:
    """Return the highest resident memory of this process so far; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
