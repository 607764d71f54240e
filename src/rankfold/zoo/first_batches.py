"""The beginning of any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from rankfold._batches import batch_size, iterate, split_batch


class FirstBatches:
    """The first samples of a loader; the last batch is cut.

    Parameters
    ----------
    loader : iterable
        Of batches: inputs, ``(inputs, target)`` or a mapping of keyword inputs, with the
        samples along the first axis of every tensor and in every list.
    limit : int
        Number of samples.
    """

    def __init__(self, loader: Iterable[Any], limit: int) -> None:
        self.loader = loader
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        left = self.limit
        for batch in iterate(self.loader, "the factory's"):
            count = batch_size(split_batch(batch)[0])
            yield batch if count <= left else _cut_batch(batch, left)
            left -= count
            if left <= 0:
                return


def _cut_batch(batch: Any, count: int) -> Any:
    if isinstance(batch, list):  # here a list is (inputs, target), further inside it is samples
        return [_cut(part, count) for part in batch]
    return _cut(batch, count)


def _cut(part: Any, count: int) -> Any:
    if isinstance(part, Tensor):
        return part[:count] if part.ndim else part
    if isinstance(part, list):
        return part[:count]
    if isinstance(part, Mapping):
        return {key: _cut(value, count) for key, value in part.items()}
    if isinstance(part, tuple) and hasattr(part, "_fields"):  # a named tuple takes them one by one
        return type(part)(*(_cut(value, count) for value in part))
    if isinstance(part, tuple):
        return tuple(_cut(value, count) for value in part)
    return part
