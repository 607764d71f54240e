"""Measure what ``import rankfold`` costs beyond ``import torch``, in fresh processes.

Inside the timer: the second import only. The first run is left out of the figures, because it fills
the file cache and writes the byte code. Prints one JSON object::

    python benchmarks/import_time.py --runs 9
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

LIMIT_S = 0.3
CODE = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import rankfold
end = time.perf_counter()
print(middle - start, end - middle, torch.__version__, rankfold.__version__)
"""


def measure() -> tuple[float, float, str, str]:
    """Return the seconds of both imports in a fresh process, and both versions."""
    done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, check=True)
    torch_s, rankfold_s, torch_version, version = done.stdout.split()
    return float(torch_s), float(rankfold_s), torch_version, version


def main() -> int:
    """Run the benchmark; the exit code is 1 if the median is above the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs: int = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs must be at least 1, not {runs}")
    results = [measure() for _ in range(runs + 1)][1:]
    beyond = [r[1] for r in results]
    median = statistics.median(beyond)
    summary = {
        "benchmark": "import_time",
        "rankfold_s": {"median": round(median, 4), "min": round(min(beyond), 4)},
        "torch_s": {"median": round(statistics.median(r[0] for r in results), 4)},
        "limit_s": LIMIT_S,
        "runs": runs,
        "torch": results[0][2],
        "rankfold": results[0][3],
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(summary, indent=2))
    return 0 if median <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
