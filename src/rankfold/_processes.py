"""Work shared among the processes of ``accelerate launch`` or ``torchrun``; a single process does all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
V = TypeVar("V")


def own_share(items: Sequence[T]) -> list[T]:
    """Return this process's share of the items, every n-th for n processes."""
    rank, world = _place()
    return list(items[rank::world])


def merged(mine: Mapping[str, V]) -> dict[str, V]:
    """Return the results of all processes together; all of them must call this."""
    world = _place()[1]
    if world == 1:
        return dict(mine)
    parts: list[Mapping[str, V]] = [{} for _ in range(world)]
    torch.distributed.all_gather_object(parts, dict(mine))
    return {key: value for part in parts for key, value in part.items()}


def slowest(seconds: float) -> float:
    """Return the largest of all processes' durations, so that they decide alike; all of them must call this."""
    return max(merged({str(_place()[0]): seconds}).values())


def _place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; initialize the group if they were just launched."""
    distributed = torch.distributed
    if not distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not distributed.is_initialized():
        from accelerate import PartialState  # imported here, to keep `import rankfold` fast

        PartialState(cpu=not torch.accelerator.is_available())
    return distributed.get_rank(), distributed.get_world_size()
