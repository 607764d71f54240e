"""Strategy rene: planted ranks, time and memory of its search, accuracy without training next to other strategies.

    RANKFOLD_DATA=... python benchmarks/rene.py [--toy] [--search resnet20 resnet18] [--accuracy tt] [--smoke]

``--toy``: the space of Fig. 3 of the paper. A layer of rank 240 is planted; the search starts with the ranks 100, 200,
... 800 and has three stages.

``--search``: seconds and peak memory of a process that searches without data. ResNet-20 for CIFAR-10 has its trained
weights and the paper's space 10, 20, ... 100; torchvision's ResNet-18 has random weights and 50, 150, ... 850.

``--accuracy``: top-1 of ResNet-20 on the 10,000 test images, without training. Plans of `rene`, without a budget and
within 50 % and 27.7 % of the parameters, are compared with plans of `uniform` and `compressnas` of at most the same
size and with the same factorizations. `compressnas` searches with 256 unlabeled images, the others without data.
Factors are those of the weights, or are reconstructed sequentially with 512 unlabeled images.

Each part is added to the result file. A run that was stopped resumes: rows of ``--accuracy`` are not measured again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn

import _harness
import rankfold as rf
from rankfold import methods
from rankfold.api.options import Reconstruct
from rankfold.cost import Pricing
from rankfold.inventory import inspect

SPACES: dict[str, dict[str, Any]] = {
    "resnet20": {"rank_min": 10, "rank_max": 100, "step": 10},
    "resnet18": {"rank_min": 50, "rank_max": 850, "step": 100},
}
SEARCHED = ("tt", "tt3", "cp")
BUDGETS = ("params<=27.7%", "params<=50%", None)
STRATEGIES: dict[str, Any] = {"rene": rf.RENE(**SPACES["resnet20"]), "uniform": "uniform"}
STRATEGIES["compressnas"] = rf.CompressNAS(samples=256)
RANK = 240
HOW: tuple[Reconstruct, ...] = ("weights", "sequential")


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("rene", __doc__)
    parser.add_argument("--toy", action="store_true", help="planted ranks")
    parser.add_argument("--search", nargs="*", default=[], choices=list(SPACES), help="time and memory of the search")
    parser.add_argument("--accuracy", nargs="*", default=[], choices=SEARCHED, help="accuracy without training")
    parser.add_argument("--smoke", action="store_true", help="small layers and few images")
    parser.add_argument("--child", nargs=2, metavar=("NETWORK", "METHOD"), help="measure the search of this process")
    args = parser.parse_args()
    _harness.start(args)
    if args.child:
        name, method = args.child
        print(json.dumps(searched(name, method, args, parser)))
        return
    results: dict[str, Any] = _harness.stored(args) or {}
    jobs: list[tuple[str, str, Callable[[], Any]]] = [("toy", m, lambda m=m: toy(m, args)) for m in ("svd", "tt")]
    jobs = jobs if args.toy else []
    jobs += [
        ("search", f"{n} {m}", lambda n=n, m=m: _harness.in_new_process(__file__, args, "--child", n, m))
        for n in args.search
        for m in SEARCHED
    ]
    for part, name, measure in jobs:
        results.setdefault(part, {})[name] = measure()
        print(part, name, json.dumps(results[part][name]), flush=True)
        _harness.save("rene", results, args)
    bench = Bench(parser, args) if args.accuracy else None
    rows: list[dict[str, Any]] = results.setdefault("accuracy", []) if bench else []
    for method, budget, strategy in product(args.accuracy, BUDGETS, STRATEGIES):
        cell = {"method": method, "budget": budget or "none", "strategy": strategy}
        if bench is not None and not any(cell.items() <= row.items() for row in rows):
            rows.append(cell | bench.measure(method, budget or bench.size_of(method, strategy, rows), strategy))
            print(rows[-1], flush=True)
            _harness.save("rene", results, args)


def toy(method: str, args: Any) -> dict[str, Any]:
    """Plant a rank and search for it."""
    scale = 10 if args.smoke else 1
    rank, channels = RANK // scale, 1700 // scale if method == "svd" else 900 // scale
    generator = torch.Generator().manual_seed(args.seed)
    module = nn.Linear(channels, channels) if method == "svd" else nn.Conv2d(channels, channels, 3, padding=1)
    x = torch.randn(1, channels, *(() if method == "svd" else (4, 4)), generator=generator)
    (layer,) = inspect(module, x)
    chosen = methods.get(method)
    blueprint = chosen.blueprint(layer, (rank,) * len(chosen.max_ranks(layer)))
    drawn = [torch.randn(shape, generator=generator) for shape in blueprint.factor_shapes]
    weight = methods.compose(blueprint, layer, drawn)
    module.weight.data = weight / weight.norm()
    space: dict[str, Any] = {
        "rank_min": 100 // scale,
        "rank_max": 800 // scale,
        "step": 100 // scale,
        "shrink": 10 if scale == 1 else 3,
    }
    start = time.perf_counter()
    plan = rf.plan(module, x, strategy=rf.RENE(**space), methods=method)
    return {
        "layer": layer.describe(), "planted": rank, "space": space,
        "result": [list(choice.ranks) for choice in plan.factored.values()],
        "stages": plan.provenance.search["stages"], "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def network(name: str, parser: Any) -> tuple[nn.Module, Any]:
    """Return a network of the search and its example input."""
    if name == "resnet18":
        return rf.zoo.create("torchvision/resnet18"), rf.zoo.example_input("torchvision/resnet18")
    weights = _harness.data_folder(parser) / "weights" / "resnet20_cifar10.safetensors"
    return rf.zoo.create("resnet20_cifar10", weights=weights), rf.zoo.example_input("resnet20_cifar10")


def searched(name: str, method: str, args: Any, parser: Any) -> dict[str, Any]:
    """Search without data, and return what it took and gave."""
    model, x = network(name, parser)
    before = _harness.peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    plan = rf.plan(model, x, strategy=rf.RENE(**SPACES[name]), methods=(method, "svd"), seed=args.seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "load": round(os.getloadavg()[1], 1),
        "peak_mib": _harness.peak_mib(), "peak_mib_before": before, "stages": plan.provenance.search["stages"],
        **reductions(model, x, plan), "ranks": {layer: list(choice.ranks) for layer, choice in plan.factored.items()},
    }  # fmt: skip


def reductions(model: nn.Module, x: Any, plan: rf.Plan) -> dict[str, float]:
    """Return the shares of parameters and MACs that a plan removes."""
    pricing = Pricing.of_plan(inspect(model, x), plan)
    after, before = pricing.plan_cost(plan), pricing.inventory.total
    return {"params_removed": 1 - after.params / before.params, "macs_removed": 1 - after.macs / before.macs}


class Bench:
    """ResNet-20 with its data."""

    def __init__(self, parser: Any, args: Any) -> None:
        data, few = _harness.data_folder(parser), args.smoke
        self.args, (self.model, self.x) = args, network("resnet20", parser)
        entry, spec = rf.zoo.entry("resnet20_cifar10"), f"cifar10:{data / 'cifar10'}"
        images = rf.zoo.data(spec, split="calibration", normalize=entry, limit=64 if few else 512, seed=args.seed)
        self.images = list(images)  # the same batches each time, decoded once
        limit = 500 if few else None
        self.metric = rf.top1(list(rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=limit)))

    def size_of(self, method: str, strategy: str, rows: list[dict[str, Any]]) -> str | None:
        """Return the budget of a row without one: the size of the plan that `rene` makes without a budget."""
        if strategy == "rene":
            return None
        cell = {"method": method, "budget": "none", "strategy": "rene"}
        return next(f"params<={row['parameters']}" for row in rows if cell.items() <= row.items())

    def measure(self, method: str, budget: str | None, strategy: str) -> dict[str, Any]:
        """Return size and accuracy of one plan, with factors of the weights and reconstructed."""
        start, looks = time.perf_counter(), strategy == "compressnas"
        plan = rf.plan(
            self.model, self.x, budget=budget, strategy=STRATEGIES[strategy], methods=(method, "svd"),
            calibration=self.images if looks else None, seed=self.args.seed,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        models = {how: rf.apply(self.model, plan, self.images, reconstruct=how) for how in HOW}
        return {
            "parameters": sum(p.numel() for p in models["weights"].parameters()),
            **reductions(self.model, self.x, plan),
            **{how: rf.evaluate(model, self.metric) for how, model in models.items()},
            "plan_s": round(seconds, 1), "load": round(os.getloadavg()[1], 1),
            "ranks": {layer: list(choice.ranks) for layer, choice in plan.factored.items()},
        }  # fmt: skip


if __name__ == "__main__":
    main()
