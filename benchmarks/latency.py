"""Plan with measured latency, and by counts alone at the same parameters; time all of them against the dense network.

    python benchmarks/latency.py --threads 1 [--only resnet18] [--target onnxruntime] [--batch 1]

Networks have random weights, which do not affect times; errors of candidates are those of their weights. For each
network, batch size and runtime, five plans are made: with a bound of 60 % on the latency; by counts alone with a bound
on the parameters of the first plan; with half of the MACs, with and without a target; and with the bound on the latency
met by removing channels instead of factoring. All models are then timed against the dense one, each in alternating
rounds of one run. Rows are written as they are measured, and an interrupted run resumes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import _harness
import rankfold as rf
from rankfold import zoo
from rankfold.candidates.cache import Cache
from rankfold.cost import Pricing
from rankfold.timing import Target, Timer

NETWORKS = {
    "vgg16_bn": ("vgg16_bn_cifar10", (3, 32, 32)),
    "resnet18": ("torchvision/resnet18", (3, 224, 224)),
    "resnet56": ("resnet56_cifar10", (3, 32, 32)),
    "mobilenet_v2": ("torchvision/mobilenet_v2", (3, 224, 224)),
}
RUNTIMES = ("onnxruntime", "torch", "torch, memory_format=channels_last")
LATENCY = 0.6
MACS = 0.5


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("latency", __doc__)
    parser.add_argument("--only", choices=list(NETWORKS), action="append")
    parser.add_argument("--target", choices=RUNTIMES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the times of layers")
    args = parser.parse_args()
    _harness.start(args)
    rows = _harness.stored(args) or []
    for batch in args.batch or (1, 32):
        for runtime in args.target or RUNTIMES:
            for name in args.only or NETWORKS:
                for row in measured(name, runtime, batch, args.cache, rows):
                    rows.append(row)
                    print(row, flush=True)
                    _harness.save("latency", rows, args)
    print(args.out)


def measured(
    name: str, runtime: str, batch: int, cache: Path | None, known: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network on one runtime that are not known yet."""
    target = f"{runtime}, threads={torch.get_num_threads()}"
    timed = {"target": target, "cache": cache}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        f"latency<={LATENCY:.0%}": (f"latency<={LATENCY}", timed),
        "counts, same parameters": ("", {}),
        f"macs<={MACS:.0%}, target": (f"macs<={MACS}", timed),
        f"macs<={MACS:.0%}, counts": (f"macs<={MACS}", {}),
        f"latency<={LATENCY:.0%}, prune": (f"latency<={LATENCY}", {**timed, "strategy": "prune"}),
    }
    here = {"network": name, "runtime": runtime, "batch": batch}
    done = {row["plan"]: row for row in known if here.items() <= row.items()}
    if set(wanted) <= set(done):
        return
    entry, shape = NETWORKS[name]
    model, x = zoo.create(entry, seed=0).eval(), torch.randn(batch, *shape)
    pricing = Pricing.of(rf.inspect(model, x))
    timer = Timer(model, x, Target.of(target), None if cache is None else Cache(cache))
    same = MACS
    for label, (budget, options) in wanted.items():
        if label in done:
            same = done[label].get("params", same) if label == next(iter(wanted)) else same
            continue
        row: dict[str, Any] = {**here, "plan": label}
        started = time.process_time()
        try:
            plan = rf.plan(model, x, budget=budget or f"params<={same}", **options)
        except rf.RankfoldError as error:
            yield row | {"refused": str(error).splitlines()[0]}
            continue
        cost, dense = pricing.plan_cost(plan), pricing.inventory.total
        same = cost.params / dense.params if label == next(iter(wanted)) else same
        compared = timer.compare_plan(plan)
        yield row | {
            "params": cost.params / dense.params,
            "macs": cost.macs / dense.macs,
            "time": compared.ratio,
            "uncertainty": compared.spread,
            "dense_ms": compared.dense_ns / 1e6,
            "factored": len(plan.factored),
            "models measured": len(plan.provenance.search.get("latency", {}).get("trials", ())),
            "CPU seconds of planning": round(time.process_time() - started),
        }


if __name__ == "__main__":
    main()
