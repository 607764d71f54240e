"""Pruning criteria on ResNet-56: accuracy of pruned networks, time of the filter-wise CP, spread of the distances.

    RANKFOLD_DATA=... python benchmarks/criteria.py [--accuracy] [--decomposition] [--distances] [--energy] [--memory]

``--accuracy``: strategy ``norton`` with each criterion, ratio and rank, without labels: the factors are fitted layer by
layer to the original's outputs on training images (``reconstruct="sequential"``). Top-1 on test images; ``random`` has
three seeds. ``--epochs 1`` also fine-tunes each network on all training images by their labels, as the authors do, and
measures it again. Rows that are in the result file are not measured again, so an interrupted run resumes.

``--decomposition``: seconds of the filter-wise CP of all 3x3 convolutions at rank 4, every filter of a layer in one
batch, with the mean relative error of the layers.

``--distances``: for each rank, how the distances of all pairs of filters of all 3x3 convolutions spread, next to those
of the formula of the authors' public code, and the share of kept filters that both orders of removal agree on. That
formula is ``asin(min(1, ||B - A A^T B||_F))`` modulo pi / 2 in float32, summed over head, body and tail, with bases
from QR decompositions. ``as coded`` also keeps the filters that the code keeps: it sorts the order of removal as if it
were scores.

``--energy``: for each rank and criterion, the rank correlation of scores and norms of the filters, and the share of the
squared norm that the removed filters have: means over the first convolutions of the blocks.

``--memory``: seconds and peak memory of the distances of 512 filters at rank 8, 512 inputs, in a process of their own.

Each part is added to the result file.
"""

from __future__ import annotations

import itertools
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

import _harness
import rankfold as rf
from _networks import fitted
from rankfold import criteria
from rankfold.criteria import Filters, pabs_distances
from rankfold.factor.subspaces import Subspaces, removal_order
from rankfold.inventory import layer_weight
from rankfold.records import LayerInfo
from rankfold.surgery.merged import merged

NETWORK = "resnet56_cifar10"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
KEPT = 0.6
SEEDS = 3


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("criteria", __doc__)
    parser.add_argument("--network", default=NETWORK, help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--accuracy", action="store_true", help="top-1 of pruned and factored networks")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4], help="shares of the filters")
    parser.add_argument("--criteria", nargs="+", default=criteria.registry.names(), help="criteria to compare")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    parser.add_argument("--test-images", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning after the fit")
    parser.add_argument("--fitted", type=Path, help="folder in which fitted networks are kept for a later run")
    parser.add_argument("--decomposition", action="store_true", help="time of the filter-wise CP")
    parser.add_argument("--distances", action="store_true", help="spread of the distances")
    parser.add_argument("--energy", action="store_true", help="norms of the filters that each criterion removes")
    parser.add_argument("--memory", action="store_true", help="memory of all pairs of a layer")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="ranks of the distances")
    parser.add_argument("--factor-ranks", type=int, nargs="+", default=[2, 4], help="ranks of the factored networks")
    parser.add_argument("--child", action="store_true", help="measure the memory of this process")
    args = parser.parse_args()
    _harness.start(args)
    if args.child:
        print(json.dumps(memory_here(args.seed)))
        return
    results: dict[str, Any] = _harness.stored(args) or {}
    if args.accuracy:
        accuracy(results.setdefault("accuracy", []), _harness.data_folder(parser), args)
        _harness.save("criteria", results, args)
    if args.decomposition or args.distances or args.energy:
        data = _harness.data_folder(parser)
        model = rf.zoo.create(args.network, weights=data / "weights" / f"{args.network}.safetensors")
        inventory = rf.inspect(model, rf.zoo.example_input(args.network))
        layers = [(layer, layer_weight(model, layer.name)) for layer in inventory if layer.kernel == (3, 3)]
        if args.decomposition:
            results["decomposition"] = decomposition(layers, rank=4)
        if args.distances:
            results["distances"] = [distances(layers, rank) for rank in args.ranks]
        if args.energy:
            inner = [(layer, weight) for layer, weight in layers if layer.name.endswith(".conv1")]
            results["energy"] = [energy(inner, name, rank) for name in args.criteria for rank in args.ranks]
    if args.memory:
        command = [sys.executable, __file__, "--child", "--seed", str(args.seed), "--threads", str(args.threads or 1)]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        results["memory"] = json.loads(child.stdout)
    print(json.dumps(results, indent=2))
    print(_harness.save("criteria", results, args))


def accuracy(rows: list[dict[str, Any]], data: Path, args: Any) -> None:
    """Add a row for each setting that has none."""
    network = args.network
    model = rf.zoo.create(network, weights=data / "weights" / f"{network}.safetensors")
    entry, spec, example = rf.zoo.entry(network), f"cifar10:{data / 'cifar10'}", rf.zoo.example_input(network)
    images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.images, seed=args.seed))
    test = list(rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=args.test_images))
    train = list(rf.zoo.data(spec, split="train", normalize=entry, shuffle=True, seed=args.seed)) if args.epochs else []
    settings = [
        (ratio, rank, criterion, seed)
        for ratio, rank in itertools.product(args.ratios, args.factor_ranks)
        for criterion in args.criteria
        for seed in range(SEEDS if criteria.get(criterion).seeded else 1)
    ]
    for ratio, rank, criterion, seed in settings:
        setting = {
            "network": network, "ratio": ratio, "rank": rank, "criterion": criterion, "seed": seed,
            "images": args.images, "test_images": args.test_images,
        }  # fmt: skip
        wanted = [setting | {"epochs": epochs} for epochs in dict.fromkeys((0, args.epochs))]
        missing = [row for row in wanted if not any(row.items() <= known.items() for known in rows)]
        if not missing:
            continue
        start = time.process_time()
        name = f"{network}-{ratio}-{rank}-{criterion}-{seed}-{args.images}"
        folder = None if args.fitted is None else args.fitted / name
        strategy = rf.Norton(ratio=ratio, rank=rank, criterion=criterion)
        small = fitted(model, example, strategy, images, seed=seed, folder=folder)
        for row in missing:
            if row["epochs"]:
                recipe = rf.FineTune(
                    data=train, epochs=args.epochs, loss="task", channels_last=True, merge_factors=True, seed=args.seed
                )
                small = rf.finetune(small, recipe).model
            params = sum(p.numel() for p in small.parameters())
            with merged(small):  # the same outputs up to rounding, in a third of the time
                measured = {"params": params, "top1": rf.evaluate(small, rf.top1(test))}
            rows.append({**row, **measured, "cpu_s": round(time.process_time() - start)})
            print(rows[-1], flush=True)
            results = _harness.stored(args) or {}
            _harness.save("criteria", {**results, "accuracy": rows}, args)


def decomposition(layers: list[tuple[LayerInfo, Tensor]], rank: int) -> dict[str, Any]:
    """Factor every layer filter by filter; return the time and the errors."""
    start, cpu, errors = time.perf_counter(), time.process_time(), []
    for layer, weight in layers:
        filters = Filters(weight, layer, rank=rank)
        head, *kernels = filters.factors
        rebuilt = torch.einsum("fir,fyr,fxr->fiyx", head, *kernels)
        errors.append(float((rebuilt - filters.weight).norm() / filters.weight.norm()))
    return {
        "layers": len(layers),
        "filters": sum(layer.out_channels for layer, _ in layers),
        "rank": rank,
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "mean_relative_error": sum(errors) / len(errors),
    }


def distances(layers: list[tuple[LayerInfo, Tensor]], rank: int) -> dict[str, Any]:
    """Return the spread of the distances of all pairs, ours and those of the published formula."""
    ours, theirs, parts = list[Tensor](), list[Tensor](), [list[Tensor]() for _ in range(3)]
    agree, coded, correlations = list[float](), list[float](), list[float]()
    for layer, weight in layers:
        filters = Filters(weight, layer, rank=rank)
        i, j = torch.triu_indices(len(filters), len(filters), offset=1)
        exact, published = pabs_distances(filters), published_distances(filters.factors)
        ours.append(exact[i, j])
        theirs.append(published[i, j].double())
        for part, factor in zip(parts, filters.factors, strict=True):
            part.append(Subspaces.of(factor).distances()[i, j])
        if len(ours[-1].unique()) > 1 and len(theirs[-1].unique()) > 1:
            correlations.append(rank_correlation(ours[-1], theirs[-1]))
        first, second = removal_order(exact), removal_order(published.double())
        keep = round(KEPT * len(filters))
        agree.append(common(first[-keep:], second[-keep:]))
        # The code sorts the order of removal, whose last entry is the number of the last filter, and keeps the last.
        entries = torch.cat([second[:-1], torch.tensor([len(filters) - 1])])
        coded.append(common(second[-keep:], entries.argsort(stable=True)[-keep:]))
    return {
        "rank": rank,
        "pairs": sum(map(len, ours)),
        "pabs": spread(torch.cat(ours)),
        **{f"pabs {name}": spread(torch.cat(part)) for name, part in zip(("head", "body", "tail"), parts, strict=True)},
        "published formula": spread(torch.cat(theirs)),
        "rank_correlation": sum(correlations) / len(correlations) if correlations else None,
        "kept_in_common": sum(agree) / len(agree),
        "kept_as_coded": sum(coded) / len(coded),
        "kept": KEPT,
    }


def energy(layers: list[tuple[LayerInfo, Tensor]], criterion: str, rank: int) -> dict[str, Any]:
    """Return how the scores of a criterion depend on the norms, and what the filters have that it removes."""
    correlations, shares = list[float](), list[float]()
    for layer, weight in layers:
        filters = Filters(weight, layer, rank=rank)
        scores, norms = (criteria.get(name).scores(filters) for name in (criterion, "l2"))
        correlations.append(rank_correlation(scores, norms))
        gone = scores.argsort()[: round((1 - KEPT) * len(filters))]
        shares.append(float(norms[gone].square().sum() / norms.square().sum()))
    return {
        "criterion": criterion,
        "rank": rank,
        "removed": 1 - KEPT,
        "correlation_with_norm": round(sum(correlations) / len(layers), 3),
        "squared_norm_removed": round(sum(shares) / len(layers), 3),
    }


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation, with mean ranks for equal values."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def spread(values: Tensor) -> dict[str, float]:
    """Return quantiles in radians, and the share of zeros."""
    ordered = values.sort().values
    quantiles = {f"{q:.0%}": round(float(ordered[round(q * (len(ordered) - 1))]), 4) for q in QUANTILES}
    return {"zero": float((values < 1e-6).double().mean()), **quantiles}


def common(one: Tensor, other: Tensor) -> float:
    """Return the share of elements that two sets have in common."""
    return len(set(one.tolist()) & set(other.tolist())) / len(one)


def published_distances(factors: list[Tensor]) -> Tensor:
    """Return the distances of the published formula, ``(out, out)`` in float32."""
    total = torch.zeros(len(factors[0]), len(factors[0]))
    turn = torch.tensor(math.pi) / 2
    for factor in factors:
        bases = torch.linalg.qr(factor.float()).Q
        for number, basis in enumerate(bases):
            rest = bases - basis @ (basis.mT @ bases)
            angles = torch.linalg.vector_norm(rest, dim=(1, 2)).clamp_max(1).asin().abs().remainder(turn)
            total[number, number + 1 :] += angles[number + 1 :]
    return total + total.mT


def memory_here(seed: int) -> dict[str, Any]:
    """Return time and peak memory of the distances of 512 random filters at rank 8."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(512, size, 8, generator=generator) for size in (512, 3, 3)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    total = sum((Subspaces.of(factor).distances() for factor in factors), start=torch.zeros(()))
    middle = time.perf_counter()
    removal_order(total)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "filters": 512,
        "inputs": 512,
        "rank": 8,
        "distances_s": round(middle - start, 2),
        "order_s": round(time.perf_counter() - middle, 2),
        "peak_MiB": round(after / 1024),
        "added_MiB": round((after - before) / 1024),
    }


if __name__ == "__main__":
    main()
