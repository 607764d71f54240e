"""Random streams, so that parts of a program draw from the global generators without affecting each other.

User code (samplers, augmentation, dropout) draws from the global generators of Python, NumPy and torch. For
reproducible training, each purpose has a separate stream whose seed depends on the purpose and the step, not on what
ran before. A resumed run therefore draws the same numbers as an uninterrupted one, without stored generator states.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def entropy(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the key."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    # NumPy ignores trailing zeros, hence the length.
    return int(np.random.SeedSequence([len(words), *words]).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restore every global generator at the end of the block."""
    before = _capture(device)
    try:
        yield
    finally:
        _put(before, device)


class RandomStream:
    """A stream of the global generators; a context that can be entered repeatedly.

    It includes the generator of the device. Equal keys give equal streams.
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

    def __exit__(self, *error: object) -> None:
        self._state = _capture(self._device)
        _put(self._outside.pop(), self._device)


# Users' augmentation draws from NumPy's legacy global generator, hence the noqas.


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
