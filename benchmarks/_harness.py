"""What every benchmark script shares: arguments, and results that say where they come from.

A script calls `parser`, measures, and calls `save` with plain JSON values. A result file is never
edited by hand; documents are made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch
from threadpoolctl import threadpool_limits

import rankfold
from rankfold._files import write_text
from rankfold.timing.torch_runtime import cpu_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torchvision", "timm", "scipy", "tensorly", "onnx", "onnxruntime", "onnxscript", "ultralytics", "yolov5")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark: ``--out``, ``--seed``, ``--threads``."""
    first_line = (description or "").strip().splitlines()[:1]
    result = argparse.ArgumentParser(prog=name, description="".join(first_line))
    default = RESULTS / f"{name}.json"
    result.add_argument("--out", type=Path, default=default, help="the result file")
    result.add_argument("--seed", type=int, default=0, help="random seed")
    result.add_argument("--threads", type=int, help="of torch and BLAS; default: as they choose")
    return result


def data_folder(parser: argparse.ArgumentParser) -> Path:
    """Return the folder of CIFAR-10 and the weights; end with the parser's error if it is not set."""
    if "RANKFOLD_DATA" not in os.environ:
        parser.error("set RANKFOLD_DATA to the folder of CIFAR-10 and the weights")
    return Path(os.environ["RANKFOLD_DATA"])


def start(args: argparse.Namespace) -> None:
    """Set the threads of torch and of the BLAS of NumPy and SciPy, and torch's seed, as the arguments say."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
        threadpool_limits(args.threads)
    torch.manual_seed(args.seed)


def save(name: str, results: Any, args: argparse.Namespace) -> Path:
    """Write the result file, whole or not at all, and return its path.

    Parameters
    ----------
    name : str
        The benchmark.
    results : object
        JSON values; units belong in the keys, such as ``"median_ms"``.
    args : Namespace
        The arguments of the run, from `parser`; all are recorded, of a path only the last part.
    """
    options = {k: v for k, v in vars(args).items() if k not in ("out", "seed")}
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "seed": args.seed,
        "options": {k: v.name if isinstance(v, Path) else v for k, v in options.items()},
        "versions": versions(),
        "machine": machine(),
        "results": results,
    }
    return write_text(args.out, json.dumps(record, indent=2, allow_nan=False) + "\n")


def stored(args: argparse.Namespace) -> Any:
    """Return the results in the result file, from which an interrupted run resumes; None if there is no file."""
    return json.loads(args.out.read_text(encoding="utf-8"))["results"] if args.out.exists() else None


def in_new_process(script: str, args: argparse.Namespace, *arguments: str) -> Any:
    """Run a script in a separate process with the common arguments and others; return the JSON of its last line."""
    command = [sys.executable, script, *arguments, "--seed", str(args.seed), "--out", str(args.out)]
    command += [] if args.threads is None else ["--threads", str(args.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {
        "python": platform.python_version(),
        "rankfold": rankfold.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def peak_mib() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage also counts the parent, as large as it was when it started this process
        peaks = [line.split() for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:")]
        return round(int(peaks[0][1]) / 2**10)
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def commit() -> str | None:
    """Return the commit's hash, with ``+changes`` if tracked files differ; None outside of git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def table(rows: Mapping[str, Mapping[str, Any]], stream: Any = None) -> None:
    """Print rows by name, their values in aligned columns."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [["", *columns]]
    for name, row in rows.items():
        cells.append([name, *(_cell(row.get(column, "")) for column in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    for first, *rest in cells:
        line = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        print("  ".join(line), file=stream or sys.stdout)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
