"""Work shared by the processes of ``accelerate launch`` or ``torchrun``; alone, all of it is one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
V = TypeVar("V")


def own_share(items: Sequence[T]) -> list[T]:
    """Return every n-th of the items, beginning with the process's own number; n processes take them all."""
    rank, world = _place()
    return list(items[rank::world])


def merged(mine: Mapping[str, V]) -> dict[str, V]:
    """Return what all processes found together; a call that all of them have to make."""
    if _place()[1] == 1:
        return dict(mine)
    found: list[Mapping[str, V]] = [{} for _ in range(_place()[1])]
    torch.distributed.all_gather_object(found, dict(mine))
    return {key: value for part in found for key, value in part.items()}


def _place() -> tuple[int, int]:
    """Return the number of this process and how many there are, joining them if they have just been launched."""
    distributed = torch.distributed
    if not distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not distributed.is_initialized():
        from accelerate import PartialState  # imported here: `import rankfold` must not pay for it

        PartialState(cpu=not torch.accelerator.is_available())
    return distributed.get_rank(), distributed.get_world_size()
