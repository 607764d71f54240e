"""Time training steps of factored ResNet-56 networks through their stages and with merged factors.

    python benchmarks/merged.py --threads 1

The factors are filter-wise CP of several ranks, and Tucker and SVD with half of the parameters; images and weights are
random, the memory format is channels-last, the loss is that of the labels. Both ways are timed in turns. The result has
the median CPU time of a step of each, the ratio, and what the backward pass keeps of a forward pass.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import _harness
import rankfold as rf
from rankfold import zoo
from rankfold.surgery.merged import merged
from rankfold.tune import FineTune, finetune

NETWORK = "resnet56_cifar10"
BATCH, STEPS, ROUNDS = 128, 2, 3


def main() -> None:
    """Measure, print and save."""
    args = _harness.parser("merged", __doc__).parse_args()
    _harness.start(args)
    dense, example = zoo.create(NETWORK, seed=args.seed).eval(), zoo.example_input(NETWORK)
    batch = (torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,)))
    rows = {
        "dense": {
            "stages_ms": round(1e3 * seconds(dense, batch, merge_factors=False), 1),
            "stages_kept_MiB": kept(dense, batch, merge=False),
        }
    }
    networks = {f"filterwise_cp, rank {rank}": norton(dense, example, rank) for rank in (1, 2, 4, 7)}
    for method in ("tucker", "svd"):
        half = {"budget": "params<=50%", "strategy": "energy", "methods": method}
        networks[f"{method}, 50 % of the parameters"] = rf.apply(dense, rf.plan(dense, example, **half))
    for name, small in networks.items():
        rows[name] = row(small, batch)
        print(name, rows[name], flush=True)
    _harness.table(rows)
    print(_harness.save("merged", rows, args))


def norton(dense: nn.Module, example: Any, rank: int) -> nn.Module:
    """Return the network with every convolution factored filter by filter at one rank, no channel removed."""
    return rf.apply(dense, rf.plan(dense, example, strategy=rf.Norton(ratio=0.0, rank=rank)))


def row(small: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Time both ways in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for merge, known in times.items():
            known.append(seconds(small, batch, merge_factors=merge))
    stages, product = (statistics.median(known) for known in times.values())
    return {
        "stages_ms": round(1e3 * stages, 1),
        "merged_ms": round(1e3 * product, 1),
        "ratio": round(product / stages, 3),
        "stages_kept_MiB": kept(small, batch, merge=False),
        "merged_kept_MiB": kept(small, batch, merge=True),
    }


def seconds(model: nn.Module, batch: tuple[Tensor, Tensor], *, merge_factors: bool) -> float:
    """Return the median CPU time of a training step, without the first."""
    ends: list[float] = []
    config = FineTune(
        data=[batch] * (STEPS + 1), epochs=1, loss="task", channels_last=True, merge_factors=merge_factors
    )
    finetune(model, config, progress=lambda _: ends.append(time.process_time()))
    return statistics.median(end - start for start, end in pairwise(ends))


def kept(model: nn.Module, batch: tuple[Tensor, Tensor], *, merge: bool) -> int:
    """Return the size of the tensors that a forward pass in training mode keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, labels = batch
    with merged(model.train()) if merge else nullcontext(), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model(images), labels)  # the graph holds the storages until here
        size = sum(sizes.values())
        del loss
    model.eval()
    return round(size / 2**20)


if __name__ == "__main__":
    main()
