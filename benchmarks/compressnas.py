"""Global search against layer-by-layer rules: CIFAR-10 test accuracy without any training, at equal parameters.

    RANKFOLD_DATA=... python benchmarks/compressnas.py [--network resnet20_cifar10] [--gone 30 50 60 72.3] [--smoke]

Plans are made and factors found with 1,024 unlabeled training images; nothing is trained. Baselines: `uniform`
(tucker), `energy` and `vbmf` (its ranks drawn towards the full ones as far as the budget allows) with factors of the
weights and of the data. `compressnas` searches over svd, tucker,
spatial_svd and tt with the proxy `fisher+network`, with and without gauge fixing, and as `compressnas, rivals` with its
default, which compares plans of several proxies; its plan is filled with data-aware and with sequentially reconstructed
factors. It has no time limit, so that the load of the machine does not change its
plans. BatchNorm statistics are re-estimated where that brings the outputs on the calibration images closer to the
original's (what `rf.apply` does by default). The parameters are those of the built
module. A run that was stopped goes on where it was, rows in the result file are not measured again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import _harness
import rankfold as rf
from rankfold.api.options import Reconstruct

METHODS = ("svd", "tucker", "spatial_svd", "tt")
BASELINES: dict[str, dict[str, Any]] = {
    "uniform": {"strategy": "uniform", "methods": "tucker"},
    "energy": {"strategy": "energy"},
    "vbmf": {"strategy": "vbmf"},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "compressnas": {"strategy": "compressnas", "methods": METHODS},
    "compressnas, gauged": {"strategy": "compressnas", "methods": METHODS, "gauge": True},
    "compressnas, rivals": {"strategy": "compressnas", "methods": METHODS},
}

FACTORS: dict[str, tuple[Reconstruct, ...]] = {
    **dict.fromkeys(BASELINES, ("weights", "data")),
    **dict.fromkeys(SEARCHES, ("data", "sequential")),
}


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("compressnas", __doc__)
    parser.add_argument("--network", default="resnet20_cifar10", help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--gone", type=float, nargs="+", default=[30, 50, 60, 72.3], help="per cent of the parameters")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of compressnas")
    names = [*SEARCHES, *BASELINES]
    parser.add_argument("--strategies", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--smoke", action="store_true", help="few images")
    args = parser.parse_args()
    data = _harness.data_folder(parser)
    _harness.start(args)
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    bench = Bench(data, args)
    for gone in args.gone:
        for strategy, factors in bench.cells():
            cell = {"network": args.network, "parameters gone": f"{gone:g} %", "strategy": strategy, "factors": factors}
            if any(cell.items() <= row.items() for row in rows):
                continue
            rows.append(cell | bench.measure(gone, strategy, factors))
            print(rows[-1], flush=True)
            _harness.save("compressnas", rows, args)


class Bench:
    """One network with its data."""

    def __init__(self, data: Path, args: Any) -> None:
        self.args = args
        self.model = rf.zoo.create(args.network, weights=data / "weights" / f"{args.network}.safetensors")
        self.example = rf.zoo.example_input(args.network)
        entry, spec = rf.zoo.entry(args.network), f"cifar10:{data / 'cifar10'}"
        limit = 64 if args.smoke else args.images
        # The same batches each time, decoded once.
        self.images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=limit, seed=args.seed))
        shown = 500 if args.smoke else None
        self.metric = rf.top1(rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=shown))
        self.cache = args.out.parent / ".cache"

    def cells(self) -> list[tuple[str, Reconstruct]]:
        """Return what is measured: strategies, and how the factors of their plans are found."""
        return [(name, factors) for name in self.args.strategies for factors in FACTORS[name]]

    def measure(self, gone: float, strategy: str, factors: Reconstruct) -> dict[str, Any]:
        """Return parameters and accuracy of one plan, and the seconds it took."""
        options = dict((BASELINES | SEARCHES)[strategy])
        if strategy in SEARCHES:
            rivals = None if strategy.endswith("rivals") else ()
            search = rf.CompressNAS(rounds=self.args.rounds, rivals=rivals)
            options |= {"cache": self.cache, "time_limit": None, "strategy": search}
        start = time.perf_counter()
        # Weight-space rows do not look at the data when they plan, either.
        plan = self.plan(gone, None if factors == "weights" else self.images, options)
        if strategy == "vbmf":
            plan = self.weakened(gone, plan, options)
        planned = time.perf_counter()
        small = rf.apply(self.model, plan, self.images, reconstruct=factors)
        return {
            "parameters": sum(p.numel() for p in small.parameters()),
            "top1": rf.evaluate(small, self.metric),
            "plan_s": round(planned - start, 1),
            "search": dict(plan.provenance.search),
        }

    def weakened(self, gone: float, plan: rf.Plan, options: dict[str, Any]) -> rf.Plan:
        """Return VBMF's plan, its ranks drawn towards the full ones as far as the budget allows (Gusak et al. 2019)."""
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            found = self.plan(gone, None, options | {"strategy": rf.VBMF(weaken=middle)}, bounded=False)
            small = sum(p.numel() for p in rf.apply(self.model, found, reconstruct="weights").parameters())
            if small <= (1 - gone / 100) * sum(p.numel() for p in self.model.parameters()):
                plan, high = found, middle
            else:
                low = middle
        return plan

    def plan(self, gone: float, images: Any, options: dict[str, Any], *, bounded: bool = True) -> rf.Plan:
        """Return a plan for what is left of the parameters, or one without a budget."""
        budget = f"params<={100 - gone:g}%" if bounded else None
        return rf.plan(self.model, self.example, budget=budget, calibration=images, seed=self.args.seed, **options)


if __name__ == "__main__":
    main()
