"""Time training steps of a ResNet-20 with half of its parameters, with and without ``channels_last``.

    python benchmarks/memory_format.py --threads 1

Both are timed in turns, with random images and weights, and the dense network as the teacher. The result has the median
CPU time of a step of each, and the ratio.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch

import _harness
import rankfold as rf
from rankfold import zoo
from rankfold.tune import FineTune, finetune

BATCH, STEPS, ROUNDS = 128, 6, 3


def main() -> None:
    """Measure, print and save."""
    args = _harness.parser("memory_format", __doc__).parse_args()
    _harness.start(args)
    teacher = zoo.create("resnet20_cifar10", seed=args.seed).eval()
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    small = rf.compress(teacher, images[:1], budget="params<=50%", methods=("tucker", "svd")).model
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for channels_last, known in seconds.items():
            ends: list[float] = []
            config = FineTune(data=[(images, labels)] * STEPS, epochs=1, channels_last=channels_last)
            finetune(small, config, teacher=teacher, progress=lambda _, ends=ends: ends.append(time.process_time()))
            known += [end - start for start, end in pairwise(ends)]
    contiguous, last = (statistics.median(seconds[key]) for key in (False, True))
    rows = {
        "training step, teacher included": {
            "contiguous_ms": round(1e3 * contiguous, 1), "channels_last_ms": round(1e3 * last, 1),
            "ratio": round(last / contiguous, 3),
        }
    }  # fmt: skip
    _harness.table(rows)
    print(_harness.save("memory_format", rows, args))


if __name__ == "__main__":
    main()
