"""Balanced against naively un-whitened factors: the same function, one epoch of fine-tuning, CIFAR-10.

    RANKFOLD_DATA=... python benchmarks/balanced.py [--images 10000] [--smoke]

A ResNet-20 loses 72 % of its parameters to low-rank factors found on 1,024 unlabeled training images. Data-aware
factors come out of a whitened space; multiplied by the inverse root of the second moment as they are, they inherit its
condition number. `rf.apply` balances them instead. Both networks compute the same, and are trained for one epoch of the
same images in the same order, with the default recipe and with one without gradient clipping.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

import _harness
import rankfold as rf
from rankfold.calibration import collect_moments
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.inventory import static_inventory
from rankfold.surgery import factored_layers

RECIPES: dict[str, dict[str, Any]] = {"default": {}, "no gradient clipping": {"max_grad_norm": None}}


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("balanced", __doc__)
    parser.add_argument("--images", type=int, default=10_000, help="labeled training images of the epoch")
    parser.add_argument("--methods", default="tucker", help="svd or tucker")
    parser.add_argument("--gone", type=int, default=72, help="per cent of the parameters that go")
    parser.add_argument("--smoke", action="store_true", help="few images")
    args = parser.parse_args()
    data = _harness.data_folder(parser)
    _harness.start(args)
    network = "resnet20_cifar10"
    model = rf.zoo.create(network, weights=data / "weights" / f"{network}.safetensors")
    entry, spec = rf.zoo.entry(network), f"cifar10:{data / 'cifar10'}"
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=1024, seed=args.seed))
    limit = 512 if args.smoke else args.images
    train = list(rf.zoo.data(spec, split="train", normalize=entry, limit=limit, seed=args.seed, shuffle=True))
    test = rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=500 if args.smoke else None)
    metric = rf.top1(test)
    plan = rf.plan(
        model,
        rf.zoo.example_input(network),
        strategy="energy",
        budget=f"params<={100 - args.gone}%",
        methods=args.methods,
        calibration=images,
        seed=args.seed,
    )
    balanced = rf.apply(model, plan, images)
    moments = collect_moments(
        model, images, [layer for layer in static_inventory(model) if layer.name in plan.factored]
    )
    naive = unbalanced(balanced, moments)
    check_same(balanced, naive, images[0])
    rows = []
    for recipe, options in RECIPES.items():
        for name, small in (("balanced", balanced), ("naive", naive)):
            start = time.process_time()
            config = rf.FineTune(data=train, epochs=1, seed=args.seed, **options)
            tuned = rf.finetune(small, config, teacher=model).model
            rows.append(
                {
                    "factors": name,
                    "recipe": recipe,
                    "largest condition": f"{worst_condition(small):.3g}",
                    "before": rf.evaluate(small, metric),
                    "after one epoch": rf.evaluate(tuned, metric),
                    "CPU seconds": round(time.process_time() - start),
                }
            )
            print(rows[-1], flush=True)
            print(_harness.save("balanced", rows, args), flush=True)


@torch.no_grad()
def unbalanced(model: nn.Module, moments: dict[str, Moments]) -> nn.Module:
    """Return a copy with the factors that un-whitening gives as they are: same products, other scales.

    Tucker: the balanced projection Q^T has orthonormal rows; with S the root of the channel moment and ``S Q = V R``,
    the naive one is ``V^T S^-1 = R^-T Q^T``, and the core takes ``R^T``. SVD: with S the root of the patch moment and
    ``A B S = U s V^T``, the naive factors are ``U s^(1/2)`` and ``s^(1/2) V^T S^-1``.
    """
    naive = copy.deepcopy(model)
    for name, module in factored_layers(naive).items():
        stages = {stage: part.get_parameter("weight") for stage, part in module.named_children()}
        moment = moments[name]
        if "core" not in stages:
            metric = Metric.of(moment.channel if moment.patch is None else moment.patch)
            left, right = (stages[stage].flatten(1).double() for stage in ("output", "input"))
            u, s, vh = torch.linalg.svd(left @ right @ metric.root[0], full_matrices=False)
            u, s, vh = u[:, : len(right)], s[: len(right)].sqrt(), vh[: len(right)]
            stages["output"].copy_((u * s).reshape(stages["output"].shape))
            stages["input"].copy_((s[:, None] * vh @ metric.inverse[0]).reshape(stages["input"].shape))
        elif "input" in stages:
            basis = stages["input"].flatten(1).double().T
            triangle = torch.linalg.qr(Metric.of(moment.channel).root[0] @ basis).R
            naive_projection = torch.linalg.inv(triangle).T @ basis.T
            stages["input"].copy_(naive_projection.reshape(stages["input"].shape))
            stages["core"].copy_(torch.einsum("oi...,ji->oj...", stages["core"].double(), triangle))
    return naive


def check_same(a: nn.Module, b: nn.Module, batch: Any) -> None:
    """Raise unless both networks compute the same."""
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    with torch.no_grad():
        difference = float((a.eval()(inputs) - b.eval()(inputs)).norm() / a(inputs).norm())
    if difference > 1e-4:
        raise AssertionError(f"the two networks differ by {difference:.1e}")


def worst_condition(model: nn.Module) -> float:
    """Return the largest condition number among the factors on the input's and the output's side."""
    values = [
        torch.linalg.svdvals(stage.get_parameter("weight").detach().flatten(1).double())
        for module in factored_layers(model).values()
        for name, stage in module.named_children()
        if name in ("input", "output")
    ]
    return max(float(v[0] / v[-1]) for v in values)


if __name__ == "__main__":
    main()
