"""Weight-space, data-aware and sequential factors side by side: same plans, no training, CIFAR-10 test images.

    RANKFOLD_DATA=... python benchmarks/sequential.py [--network resnet20_cifar10] [--gone 30 50 60 72] [--smoke]

Strategy ``energy`` makes a plan with 1,024 unlabeled training images. Its methods and ranks are then filled three
times: with factors that minimize the error of the weights, of the layers' outputs, and of the layers' outputs given
what their compressed predecessors put out. Each is measured as it is and after BatchNorm re-estimation (which keeps the
old statistics where new ones do not bring the outputs closer to the original's). Seconds are CPU seconds of `rf.apply`
without the re-estimation, with the sums over the data and the factorizations in them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import _harness
import rankfold as rf
from rankfold.calibration import reestimate_batchnorm

MODES = ("weights", "data", "sequential")


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("sequential", __doc__)
    parser.add_argument("--network", default="resnet20_cifar10", help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--gone", type=int, nargs="+", default=[30, 50, 60, 72], help="per cent of the parameters")
    parser.add_argument("--methods", default="tucker", help="factorizations to choose from")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    parser.add_argument("--smoke", action="store_true", help="few images")
    args = parser.parse_args()
    data = _harness.data_folder(parser)
    _harness.start(args)
    rows = []
    for gone in args.gone:
        rows.append(measure(gone, data, args))
        print(rows[-1], flush=True)
        print(_harness.save("sequential", rows, args), flush=True)


def measure(gone: int, data: Path, args: Any) -> dict[str, Any]:
    """Return one row of the table: a plan, and the accuracies of its three reconstructions."""
    network = args.network
    model = rf.zoo.create(network, weights=data / "weights" / f"{network}.safetensors")
    entry, spec = rf.zoo.entry(network), f"cifar10:{data / 'cifar10'}"
    limit = 64 if args.smoke else args.images
    # The same batches each time, decoded once.
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=limit, seed=args.seed))
    test = rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=500 if args.smoke else None)
    metric = rf.top1(test)
    example = rf.zoo.example_input(network)
    plan = rf.plan(
        model,
        example,
        strategy="energy",
        budget=f"params<={100 - gone}%",
        methods=args.methods,
        calibration=images,
        seed=args.seed,
    )
    row: dict[str, Any] = {"parameters gone": f"{gone} %"}
    seconds = {}
    for mode in MODES:
        start = time.process_time()
        small = rf.apply(model, plan, images, reconstruct=mode, batchnorm=False)
        seconds[f"{mode}, s"] = round(time.process_time() - start)
        row.setdefault("parameters", sum(p.numel() for p in small.parameters()))
        row[mode] = rf.evaluate(small, metric)
        renewed = reestimate_batchnorm(small, images, model)
        row[f"{mode} + BN"] = rf.evaluate(small, metric) if renewed else row[mode]
    return {**row, **seconds}


if __name__ == "__main__":
    main()
