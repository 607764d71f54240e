"""Random streams: parts of a program that draw from the global generators without disturbing each other.

User code (samplers, augmentation, dropout) draws from Python's, NumPy's and torch's global generators,
so reproducible training has to own them for a while. Each purpose gets a separate stream, seeded by
what it is for and when, and never by what ran before: so a run that is resumed draws the same numbers
as one that was never interrupted, and no generator's state needs to be stored.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch


def entropy(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the key."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    # NumPy takes trailing zeros for nothing, hence the length.
    return int(np.random.SeedSequence([len(words), *words]).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Put every global generator back as it was when the block ends, however it ends."""
    before = _capture(device)
    try:
        yield
    finally:
        _put(before, device)


class RandomStream:
    """A stream of the global generators, entered as a context, again and again.

    Parameters
    ----------
    device : torch.device
        The accelerator whose generator belongs to the stream too.
    *key : int or str
        What the stream is for; equal keys give equal streams.
    """

    def __init__(self, device: torch.device, *key: int | str) -> None:
        self._device = device
        self._seed = entropy(*key)
        self._state: tuple[Any, ...] | None = None
        self._outside: list[tuple[Any, ...]] = []

    def __enter__(self) -> None:
        self._outside.append(_capture(self._device))
        if self._state is None:
            _seed(self._seed, self._device)
        else:
            _put(self._state, self._device)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = _capture(self._device)
        _put(self._outside.pop(), self._device)


# NumPy's legacy global generator is what users' augmentation draws from, hence the noqas.


def _capture(device: torch.device) -> tuple[Any, ...]:
    accelerator = _accelerator(device)
    return (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        torch.get_rng_state(),
        accelerator.get_rng_state() if accelerator else None,
    )


def _put(state: tuple[Any, ...], device: torch.device) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    if accelerator := _accelerator(device):
        accelerator.set_rng_state(state[3])


def _seed(seed: int, device: torch.device) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that reseeds every device
    if accelerator := _accelerator(device):
        accelerator.manual_seed(seed)


def _accelerator(device: torch.device) -> Any:
    return None if device.type == "cpu" else torch.get_device_module(device)
