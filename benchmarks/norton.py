"""ResNet-56 on CIFAR-10 at the sizes of NORTON's four published networks: accuracy before and after fine-tuning.

    RANKFOLD_DATA=... python benchmarks/norton.py --folder DIR [--points d c b a] [--epochs 5]

Each network is a plan of strategy ``norton`` with the rank of the paper and a ratio for the blocks' inner widths that
leaves no more parameters than the published network has. (The paper also narrows the stages of point b. In the
network of the zoo, the shortcuts pad with zeros, which needs their full widths. Point c removes no channels, and has
one percent more parameters, because the first convolution stays dense.) The layers are fitted to unlabeled training
images (``reconstruct="sequential"``), then the network is trained with labels and the original as its teacher: the
default recipe on augmented images, with merged factors at rank 2 and more. The authors train for 400 epochs and keep
the checkpoint that is best on the test set; here, the last epoch counts.

Artifacts and checkpoints are kept in the folder. A run that was stopped resumes, and an artifact that exists is not
made again. Accuracies are top-1 on all test images, those at the end of the artifact that was loaded again.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _harness
import rankfold as rf
from _networks import fitted

NETWORK = "resnet56_cifar10"
POINTS: dict[str, dict[str, Any]] = {
    "a": {"ratio": 0.24, "rank": 7, "published": {"params": 588_000, "macs": 92.0e6, "top1": 0.9446}},
    "b": {"ratio": 0.41, "rank": 7, "published": {"params": 448_000, "macs": 72.0e6, "top1": 0.9400}},
    "c": {"ratio": 0.0, "rank": 2, "published": {"params": 218_000, "macs": 35.9e6, "top1": 0.9381}},
    "d": {"ratio": 0.22, "rank": 1, "published": {"params": 88_000, "macs": 13.2e6, "top1": 0.9162}},
}


def main() -> None:
    """Measure what is missing, and save the figures of all points."""
    parser = _harness.parser("norton", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="artifacts and checkpoints")
    parser.add_argument("--points", nargs="+", default=list(POINTS), choices=POINTS, help="networks of the paper")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled images of the fit")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--train-images", type=int, help="images per epoch; default: all")
    args = parser.parse_args()
    _harness.start(args)
    data = _harness.data_folder(parser)
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for point in args.points:
        setting = {"point": point, "images": args.images, "epochs": args.epochs, "train_images": args.train_images}
        if not any(setting.items() <= known.items() for known in rows):
            rows.append({**setting, **row(point, data, args)})
            print(rows[-1], flush=True)
            _harness.save("norton", rows, args)


def row(point: str, data: Path, args: Any) -> dict[str, Any]:
    """Fit one network, train it, save it, and measure it at each step."""
    chosen, entry, spec = POINTS[point], rf.zoo.entry(NETWORK), f"cifar10:{data / 'cifar10'}"
    model = rf.zoo.create(NETWORK, weights=data / "weights" / f"{NETWORK}.safetensors")
    example = rf.zoo.example_input(NETWORK)
    top1 = rf.top1(list(rf.zoo.data(spec, split="test", normalize=entry, batch_size=500)))
    train = rf.zoo.data(
        spec, split="train", normalize=entry, shuffle=True, augment=True, seed=args.seed, limit=args.train_images
    )
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.images, seed=args.seed))
    strategy, tuned = rf.Norton(ratio=chosen["ratio"], rank=chosen["rank"]), args.folder / f"{point}-{args.epochs}"
    start = time.process_time()
    small = fitted(model, example, strategy, images, seed=args.seed, folder=args.folder / f"{point}-fitted")
    inventory = rf.inspect(small, example)
    before, fit = rf.evaluate(small, top1), time.process_time() - start
    recipe = rf.FineTune(
        data=train, epochs=args.epochs, channels_last=True, merge_factors=chosen["rank"] > 1, seed=args.seed,
        checkpoint=args.folder / f"{point}-{args.epochs}.pt", checkpoint_every=50,
    )  # fmt: skip
    result = rf.finetune(small, recipe, teacher=model)
    rf.save(result.model, tuned)
    return {
        **chosen,
        "params": inventory.total.params,
        "macs": inventory.total.macs,
        "dense_top1": rf.evaluate(model, top1),
        "fitted_top1": before,
        "fit_cpu_s": round(fit),
        "tuned_top1": rf.evaluate(rf.load(tuned, model, example_input=example), top1),
        "history": [asdict(epoch) for epoch in result.history],
    }


if __name__ == "__main__":
    main()
