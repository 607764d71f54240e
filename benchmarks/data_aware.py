"""Data-aware against weight-space factors: same plan, no training, accuracy on the CIFAR-10 test images.

    RANKFOLD_DATA=... python benchmarks/data_aware.py [--network resnet20_cifar10] [--budget "params<=50%"]

One plan is made by strategy ``energy`` from the weights alone. The same methods and ranks are then filled twice: with
factors that minimize the error of the weights, and with factors that minimize the error of the layers' outputs on 1,024
unlabeled training images; each with the original BatchNorm statistics and with re-estimated ones. A second plan, made
with the data, shows what the data adds to the choice of ranks.
"""

from __future__ import annotations

import _harness
import rankfold as rf


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("data_aware", __doc__)
    parser.add_argument("--network", default="resnet20_cifar10", help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--budget", default="params<=50%")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    args = parser.parse_args()
    data = _harness.data_folder(parser)
    _harness.start(args)
    model = rf.zoo.create(args.network, weights=data / "weights" / f"{args.network}.safetensors")
    entry = rf.zoo.entry(args.network)
    spec = f"cifar10:{data / 'cifar10'}"
    test = rf.zoo.data(spec, split="test", normalize=entry, batch_size=500)
    images = rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.images, seed=args.seed)
    example = rf.zoo.example_input(args.network)
    metric = rf.top1(test)

    weight_plan = rf.plan(model, example, strategy="energy", budget=args.budget, seed=args.seed)
    data_plan = rf.plan(model, example, strategy="energy", budget=args.budget, calibration=images, seed=args.seed)
    cases = {
        "dense": model,
        "weight-space factors": rf.apply(model, weight_plan),
        "weight-space factors, BatchNorm re-estimated": rf.apply(model, weight_plan, images, reconstruct="weights"),
        "data-aware factors, same ranks": rf.apply(model, weight_plan, images, batchnorm=False),
        "data-aware factors, same ranks, BatchNorm re-estimated": rf.apply(model, weight_plan, images),
        "data-aware factors and ranks, BatchNorm re-estimated": rf.apply(model, data_plan, images),
    }
    rows = []
    for name, case in cases.items():
        accuracy = rf.evaluate(case, metric)
        params = sum(p.numel() for p in case.parameters())
        rows.append({"case": name, "params": params, "top1": accuracy})
        print(f"{name:<60} {params:>9,} parameters   top-1 {accuracy:.2%}", flush=True)
    print(_harness.save("data_aware", rows, args))


if __name__ == "__main__":
    main()
