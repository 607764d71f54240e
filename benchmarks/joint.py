"""Pruning alone, factoring alone and both in one search, at equal budgets: top-1 without labels or training.

    RANKFOLD_DATA=... python benchmarks/joint.py [--network resnet20_cifar10] [--left 50 30 20] [--searches joint]

All three see the same unlabeled images, and their networks are fitted to the original outputs layer by layer
(``reconstruct="sequential"``). Pruning is strategy ``prune``, the others are ``compressnas`` without and with widths.
Rows that are in the result file are not measured again.
"""

from __future__ import annotations

import time
from typing import Any

import _harness
import rankfold as rf

SEARCHES = ["joint", "factoring", "pruning"]


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("joint", __doc__)
    parser.add_argument("--network", default="resnet20_cifar10", help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--left", type=int, nargs="+", default=[50, 30, 20], help="per cent of the parameters")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=SEARCHES, help="searches to compare")
    parser.add_argument("--widths", type=float, nargs="+", default=[0.75, 0.5], help="shares of the channels")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    parser.add_argument("--test-images", type=int, default=10_000, help="test images")
    args = parser.parse_args()
    data = _harness.data_folder(parser)
    _harness.start(args)
    network = args.network
    model = rf.zoo.create(network, weights=data / "weights" / f"{network}.safetensors")
    entry, spec, example = rf.zoo.entry(network), f"cifar10:{data / 'cifar10'}", rf.zoo.example_input(network)
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.images, seed=args.seed))
    test = list(rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=args.test_images))
    strategies = {
        "joint": rf.CompressNAS(widths=tuple(args.widths)),
        "factoring": rf.CompressNAS(),
        "pruning": rf.Prune(most=0.99),
    }
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for left in args.left:
        for name in args.searches:
            setting = {
                "network": network, "left": left, "search": name, "images": args.images, "test_images": args.test_images
            }  # fmt: skip
            if any(setting.items() <= row.items() for row in rows):
                continue
            start = time.process_time()
            budget = f"params<={left}%"
            try:
                plan = rf.plan(
                    model, example, strategy=strategies[name], budget=budget, calibration=images, time_limit=None,
                    seed=args.seed,
                )  # fmt: skip
            except rf.RankfoldError as error:
                rows.append({**setting, "refused": str(error).splitlines()[0]})
                _harness.save("joint", rows, args)
                continue
            planned = time.process_time()
            small = rf.apply(model, plan, images, reconstruct="sequential", example_input=example)
            rows.append(
                {
                    **setting,
                    "params": sum(p.numel() for p in small.parameters()),
                    "channels_removed": sum(len(group.removed) for group in plan.narrowing),
                    "layers_factored": len(plan.factored),
                    "top1": rf.evaluate(small, rf.top1(test)),
                    "plan_cpu_s": round(planned - start),
                }
            )
            print(rows[-1], flush=True)
            _harness.save("joint", rows, args)


if __name__ == "__main__":
    main()
