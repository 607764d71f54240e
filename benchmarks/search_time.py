"""How long a global search takes, and what the naive loop would: one full forward pass for every candidate.

    RANKFOLD_DATA=... python benchmarks/search_time.py --threads 2 [--networks resnet18] [--smoke]

ResNet-18 of torchvision at 224x224 with 64 random calibration images and proxy ``weight``; ResNet-20 with its trained
weights, 1,024 CIFAR-10 training images and proxy ``fisher+network``. Statistics of the data (second moments), table
with measurements, and the integer program are timed apart. The naive loop replaces the weight, runs the whole network
on the same images and compares the outputs; it is timed on some candidates of every layer, and stated for as many as
the search measured, and for the whole table. Every row runs in a separate process; rows in the result file are not
measured again. `time_limit.py` times the default search, with its limit, on five networks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _harness
import rankfold as rf
from rankfold.api.planning import Planner
from rankfold.batches import split_batch
from rankfold.inventory import layer_weight
from rankfold.surgery import copy_model

METHODS = ("svd", "tucker", "spatial_svd", "tt")


TITLES = {"resnet20": "ResNet-20, CIFAR-10", "resnet18": "resnet18 at 224x224"}
NETWORKS = tuple(TITLES)


def main() -> None:
    """Measure what is missing, each row in a separate process, or one row."""
    parser = _harness.parser("search_time", __doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="networks to search")
    parser.add_argument("--runs", type=int, default=5, help="timed solves of the integer program")
    parser.add_argument("--smoke", action="store_true", help="few and small images")
    parser.add_argument("--row", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    _harness.start(args)
    if args.row is not None:
        row = of_resnet20(_harness.data_folder(parser), args) if args.row == "resnet20" else of_resnet18(args)
        print(json.dumps(row))
        return
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for network in args.networks:
        if any(row["network"] == TITLES[network] for row in rows):
            continue
        options = ["--row", network, "--runs", str(args.runs), *(["--smoke"] if args.smoke else [])]
        rows.append(_harness.in_new_process(__file__, args, *options))
        print(rows[-1], flush=True)
        _harness.save("search_time", rows, args)


def of_resnet18(args: Any) -> dict[str, Any]:
    """Return the row of ResNet-18 at 224x224, random weights and images."""
    model = rf.zoo.create("torchvision/resnet18", seed=args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images = [torch.randn(16, 3, 224, 224, generator=generator) for _ in range(1 if args.smoke else 4)]
    return measure(TITLES["resnet18"], model, images[0][:1], images, "weight", args)


def of_resnet20(data: Path, args: Any) -> dict[str, Any]:
    """Return the row of the trained ResNet-20."""
    network = "resnet20_cifar10"
    model = rf.zoo.create(network, weights=data / "weights" / f"{network}.safetensors")
    spec, entry = f"cifar10:{data / 'cifar10'}", rf.zoo.entry(network)
    limit = 64 if args.smoke else 1024
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=limit, seed=args.seed))
    return measure(TITLES["resnet20"], model, rf.zoo.example_input(network), images, "fisher+network", args)


def measure(name: str, model: nn.Module, example: Any, images: list[Any], proxy: str, args: Any) -> dict[str, Any]:
    """Return one row: seconds by stage, peak memory, and the naive loop's."""
    start = time.perf_counter()
    search = rf.Search(strategy=rf.CompressNAS(proxy=proxy), methods=METHODS, seed=args.seed)
    planner = Planner(model, example, search, images)
    assert planner.moments is not None
    collected = time.perf_counter()
    planner.plan(rf.Budget.parse("params<=50%"))
    planned = time.perf_counter()
    solves = []
    for share in range(args.runs):  # the table is there: what is left of another budget is the integer program
        begun = time.perf_counter()
        planner.plan(rf.Budget.parse(f"params<={40 + 5 * share}%, macs<=60%"))
        solves.append(time.perf_counter() - begun)
    candidates = sum(len(row) for row in planner.problem.table().rows.values())
    row = {
        "network": name,
        "proxy": proxy,
        "candidates": candidates,
        "measured": planner.estimator.measured,
        "second moments, s": round(collected - start, 1),
        "table and plan, s": round(planned - collected, 1),
        "another budget, ms": round(1e3 * statistics.median(solves)),
        "peak memory, MiB": _harness.peak_mib(),
        "naive loop, measured, s": "–",
        "naive loop, all, s": "–",
    }
    if proxy != "weight":
        shown, seen = 0, []
        for batch in images:
            if shown < 256:
                seen.append(split_batch(batch)[0])
                shown += len(seen[-1])
        each = naive(model, list(planner.problem.table().rows), seen)
        row["naive loop, measured, s"] = f"{each * planner.estimator.measured:,.0f}"
        row["naive loop, all, s"] = f"{each * candidates:,.0f}"
    return row


@torch.no_grad()
def naive(model: nn.Module, layers: list[str], batches: list[Tensor], each: int = 3) -> float:
    """Return the seconds that one candidate takes by a full forward pass, over some of every layer."""
    work = copy_model(model).eval()
    outputs = [model(batch) for batch in batches]
    count = 0
    begun = time.perf_counter()
    for name in layers:
        target = layer_weight(work, name)
        kept = target.clone()
        for scale in torch.linspace(0.8, 1.0, each).tolist():
            target.copy_(kept * scale)
            distance = sum(float((work(b) - y).square().sum()) for b, y in zip(batches, outputs, strict=True))
            assert distance >= 0
            count += 1
        target.copy_(kept)
    return (time.perf_counter() - begun) / count


if __name__ == "__main__":
    main()
