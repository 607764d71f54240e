"""The data of a run: each process's shard of every batch, reproducible for every epoch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from rankfold._config import Code, spelled
from rankfold._tensors import tensors_of
from rankfold.batches import batch_size, naming_dead_workers, require_iterable, slice_batch, split_batch
from rankfold.errors import DataError
from rankfold.tune.randomness import RandomStream, entropy, preserved


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's part of a batch.

    `active` is False if there are fewer samples than processes and none is left for this one. The process then receives
    the whole batch, so that it takes part in every step, and its loss does not count.
    """

    batch: Any  # inputs and target, as the loader returns them
    samples: int
    total: int  # samples in the whole batch
    active: bool = True

    @property
    def weight(self) -> float:
        """The share of the whole batch, 0..1; 0 if the shard is not active."""
        return self.samples / self.total if self.active else 0.0


class BatchSource:
    """The batches of each epoch.

    A plain DataLoader with batches is rebuilt so that each process loads only its own samples. From any other data,
    each process loads the whole batch and slices it. Random numbers come from streams that depend on the seed and the
    epoch only: one for the order of the samples, shared by all processes, and another for loading and augmentation.
    """

    def __init__(self, data: Iterable[Any] | None, *, seed: int, rank: int, world: int, device: torch.device) -> None:
        if data is None:
            raise DataError(f"fine-tuning needs data. Pass {spelled('data', Code('loader'), of='FineTune')}.")
        require_iterable(data, "fine-tuning")
        self._data, self._seed, self._device = data, seed, device
        self._rank, self._world = rank, world
        self.once = iter(data) is data if not isinstance(data, DataLoader) else False
        self._sharded: _ShardSampler | None = None
        self._base = torch.Generator()
        self._loader: Iterable[Any] = data
        owners = _parts(data)
        if any(isinstance(owner, DistributedSampler) for owner in owners):
            raise DataError(
                "the DataLoader has a DistributedSampler. Pass a plain DataLoader with the global "
                "batch size: fine-tuning splits each batch among the processes."
            )
        # A subclass may load differently, and an iterable data set cannot be indexed.
        plain = type(data) is DataLoader and not isinstance(data.dataset, IterableDataset)
        if isinstance(data, DataLoader) and plain and data.batch_sampler is not None:
            self._sharded = _ShardSampler(data.batch_sampler, rank, world, device)
            self._loader = _rebuilt(data, self._sharded, self._base)
        self._epoch_setters = [owner for owner in owners if hasattr(owner, "set_epoch")]
        generators = (getattr(owner, "generator", None) for owner in owners)
        self._generators = list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
        self._states = [g.get_state() for g in self._generators]

    def close(self) -> None:
        """Restore the state of the user's generators."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)

    def length(self) -> int | None:
        """Return the batches per epoch, or None if the data has no length; raise `DataError` if it is empty."""
        try:
            length = len(self._data)  # type: ignore[arg-type]
        except TypeError:  # no length, or an iterable data set without one
            return None
        if length < 1:
            raise DataError(
                "the fine-tuning data is empty: it has no batch. Is the data set smaller than the batch size with "
                "drop_last?"
            )
        return length

    def count(self) -> int:
        """Return the batches per epoch by iterating over the data; raise `DataError` if this is not possible."""
        if self.once:
            raise DataError(
                "the fine-tuning data is an iterator without a length, so the learning rate cannot be scheduled. Pass "
                f"a list or DataLoader, or set {spelled('max_steps', ..., of='FineTune')}."
            )
        with preserved(self._device):
            count = sum(1 for _ in self.epoch(0))
        require_batches(count, 0)
        return count

    def epoch(self, epoch: int) -> Generator[Shard, None, None]:
        """Yield this process's shards of the batches of an epoch (from 0), always the same ones."""
        for owner in self._epoch_setters:
            owner.set_epoch(epoch)
        for index, generator in enumerate(self._generators):
            generator.manual_seed(entropy(self._seed, "generator", epoch, index))
        # The augmentation of loaded shards may differ; that of a batch that every process loads may not.
        own = self._rank if self._sharded else 0
        stream = RandomStream(self._device, self._seed, "data", epoch, own)
        if self._sharded:
            self._sharded.begin(RandomStream(self._device, self._seed, "order", epoch))
            self._base.manual_seed(entropy(self._seed, "workers", epoch, own))
        with stream:
            iterator = iter(self._loader)
        while True:
            with stream:
                try:
                    with naming_dead_workers("training"):
                        batch = next(iterator)
                except StopIteration:
                    return
            if self._sharded:
                yield self._sharded.label(batch)
            else:
                yield cut(batch, self._rank, self._world)


class _ShardSampler(Sampler[list[Any]]):
    """A batch sampler that yields one process's part of every batch of another batch sampler."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int, device: torch.device) -> None:
        self._batches, self._rank, self._world = batches, rank, world
        self._stream = RandomStream(device, "order")
        self._sizes: deque[tuple[int, int, bool]] = deque()

    def begin(self, stream: RandomStream) -> None:
        """Start an epoch, whose order is drawn from the stream."""
        self._stream = stream
        self._sizes.clear()

    def label(self, batch: Any) -> Shard:
        """Return a loaded batch with its sizes; workers prefetch, but in order."""
        samples, total, active = self._sizes.popleft()
        return Shard(batch, samples, total, active)

    def __iter__(self) -> Iterator[list[Any]]:
        iterator: Iterator[Any] | None = None
        while True:
            with self._stream:  # shared by all processes, independent of what their loading draws
                try:
                    iterator = iter(self._batches) if iterator is None else iterator
                    whole = list(next(iterator))
                except StopIteration:
                    return
            start, stop = bounds(len(whole), self._rank, self._world)
            part = whole[start:stop] or whole
            self._sizes.append((len(part), len(whole), stop > start))
            yield part

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def bounds(total: int, rank: int, world: int) -> tuple[int, int]:
    """Return the start and end of a process's part of `total` samples; sizes differ by at most one."""
    return rank * total // world, (rank + 1) * total // world


def cut(batch: Any, rank: int, world: int) -> Shard:
    """Return a process's slice of a batch that was loaded whole."""
    total = batch_size(split_batch(batch)[0])
    if total < 1:
        raise DataError("a batch of the fine-tuning data contains no samples. Remove it.")
    start, stop = bounds(total, rank, world)
    if world == 1 or stop == start:
        return Shard(batch, total, total, stop > start)
    return Shard(slice_batch(batch, start, stop), stop - start, total)


def digest(batch: Any) -> str:
    """Return a hash of a batch's tensors, which identifies a replayed batch."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors_of(batch):
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        with suppress(RuntimeError, TypeError):  # sparse, quantized ...: shape and type must suffice
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            total.update(raw.numpy().tobytes())
    return total.hexdigest()


def first_digest(data: Iterable[Any] | None, seed: int) -> str | None:
    """Return a hash of the first batch of a run; None if the data can be iterated over only once."""
    device = torch.device("cpu")
    source = BatchSource(data, seed=seed, rank=0, world=1, device=device)
    with closing(source):
        if source.once:
            return None
        with preserved(device), closing(source.epoch(0)) as shards:
            shard = next(shards, None)
    return None if shard is None else digest(shard.batch)


def _parts(data: Any) -> list[Any]:
    """Return the objects of a loader that may draw random numbers or depend on the epoch."""
    parts = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    parts.append(getattr(parts[2], "sampler", None))
    return list({id(part): part for part in parts if part is not None}.values())


def _rebuilt(loader: DataLoader[Any], sampler: _ShardSampler, generator: torch.Generator) -> DataLoader[Any]:
    """Return the same loader with another batch sampler.

    Its workers do not persist: a run could not be resumed from their random state.
    """
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
    )


def require_batches(count: int, epoch: int) -> None:
    """Raise `DataError` if an epoch (from 0) had no batches."""
    if not count and epoch == 0:
        raise DataError("the fine-tuning data is empty: it has no batch. Was the iterator exhausted before?")
    if not count:
        raise DataError(
            f"the fine-tuning data has no batch in epoch {epoch + 1}, although it had some before. It must be iterable "
            f"once per epoch: pass a list or a DataLoader instead of a generator, or set {spelled('epochs', 1)}."
        )
