"""The beginning of any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from rankfold.errors import DataError


class FirstBatches:
    """The first `limit` samples of a loader; the last batch is cut.

    Parameters
    ----------
    loader : iterable
        Of tensors, or of tuples, lists or dicts of tensors, with the samples along the first axis.
    limit : int
        Number of samples.
    """

    def __init__(self, loader: Iterable[Any], limit: int) -> None:
        self.loader = loader
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        left = self.limit
        for batch in self.loader:
            count = _count(batch)
            yield batch if count <= left else _cut(batch, left)
            left -= count
            if left <= 0:
                return


def _count(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, Iterable):
        for part in parts:
            if isinstance(part, Tensor | tuple | list | Mapping):
                return _count(part)
    raise DataError(
        f"limit counts samples along the first axis of tensors; a batch of "
        f"{type(batch).__name__} has none. Leave limit out and let the factory cut its data."
    )


def _cut(batch: Any, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, Mapping):
        return {key: _cut(value, count) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_cut(value, count) for value in batch)
    return batch
