"""The beginning of any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

from rankfold.batches import batch_size, iterate, slice_batch, split_batch


class FirstBatches:
    """The first samples of a loader; the last batch is cut.

    Parameters
    ----------
    loader : iterable
        Of batches (`rankfold.batches`).
    limit : int
        Number of samples.
    """

    def __init__(self, loader: Iterable[Any], limit: int) -> None:
        self.loader = loader
        self.limit = limit

    def __length_hint__(self) -> int:
        size = getattr(self.loader, "batch_size", None)
        known = length_hint(self.loader, 0)
        return min(known or self.limit, -(-self.limit // size)) if isinstance(size, int) and size > 0 else 0

    def __iter__(self) -> Iterator[Any]:
        left = self.limit
        for batch in iterate(self.loader, "the factory's"):
            count = batch_size(split_batch(batch)[0])
            yield batch if count <= left else slice_batch(batch, 0, left)
            left -= count
            if left <= 0:
                return
