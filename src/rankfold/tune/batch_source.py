"""The data of a run: each process's share of every batch, the same again whenever it is asked."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from rankfold._tensors import tensors_of
from rankfold.batches import batch_size, naming_dead_workers, require_iterable, slice_batch, split_batch
from rankfold.errors import DataError
from rankfold.tune.randomness import RandomStream, entropy, preserved


@dataclass(frozen=True, slots=True)
class Shard:
    """What one process gets of a batch.

    Parameters
    ----------
    batch : object
        Inputs and target, as the loader gave them.
    samples, total : int
        Samples in it, and in the whole batch.
    active : bool
        False if there are fewer samples than processes and none is left for this one: it then gets the whole batch, so
        that it takes part in every step, and its loss does not count.
    """

    batch: Any
    samples: int
    total: int
    active: bool = True

    @property
    def weight(self) -> float:
        """The share of the whole batch, 0..1; 0 if it is not active."""
        return self.samples / self.total if self.active else 0.0


class BatchSource:
    """The batches of each epoch.

    A plain DataLoader with batches is rebuilt so that each process loads only its own samples;
    of anything else each process loads the whole batch and cuts its slice out of it. Whatever draws
    random numbers does so from streams that depend on the seed and the epoch alone: the order of
    the samples from one that all processes share, loading and augmentation from another.

    Parameters
    ----------
    data : iterable
        See `FineTune`.
    seed : int
        Random seed of the order and of augmentation.
    rank, world : int
        This process's number and how many there are.
    device : torch.device
        The training device.

    Raises
    ------
    DataError
        If the data is None, cannot be iterated over, is empty, or is sharded already.
    """

    def __init__(self, data: Iterable[Any] | None, *, seed: int, rank: int, world: int, device: torch.device) -> None:
        if data is None:
            raise DataError("there is no data to fine-tune on. Give FineTune(data=...) a DataLoader.")
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
                "the DataLoader has a DistributedSampler. Give a plain DataLoader with the global "
                "batch size: fine-tuning shares each batch among the processes itself."
            )
        # A subclass may load in another way, and an iterable data set cannot be indexed.
        plain = type(data) is DataLoader and not isinstance(data.dataset, IterableDataset)
        if isinstance(data, DataLoader) and plain and data.batch_sampler is not None:
            self._sharded = _ShardSampler(data.batch_sampler, rank, world, device)
            self._loader = _rebuilt(data, self._sharded, self._base)
        self._epoch_setters = [owner for owner in owners if hasattr(owner, "set_epoch")]
        used = (getattr(owner, "generator", None) for owner in owners)
        self._generators = list({id(g): g for g in used if isinstance(g, torch.Generator)}.values())
        self._states = [g.get_state() for g in self._generators]

    def close(self) -> None:
        """Put the state of the user's own generators back."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)

    def length(self) -> int | None:
        """Return the batches per epoch; None if the data does not say.

        Raises
        ------
        DataError
            If it is zero.
        """
        try:
            length = len(self._data)  # type: ignore[arg-type]
        except TypeError:  # no length, or an iterable data set's without one
            return None
        if length < 1:
            raise DataError(
                "the fine-tuning data is empty: it has no batch. Is the data set smaller than the "
                "batch size with drop_last?"
            )
        return length

    def count(self) -> int:
        """Return the batches per epoch by going through the data once.

        Raises
        ------
        DataError
            If it can be gone through only once, or is empty.
        """
        if self.once:
            raise DataError(
                "the fine-tuning data is an iterator without a length, so the learning rate cannot "
                "be scheduled. Give a list or DataLoader, or FineTune(max_steps=...)."
            )
        with preserved(self._device):
            count = sum(1 for _ in self.epoch(0))
        require_batches(count, 0)
        return count

    def epoch(self, epoch: int) -> Generator[Shard, None, None]:
        """Yield this process's shares of the batches of an epoch (from 0), always the same ones."""
        for owner in self._epoch_setters:
            owner.set_epoch(epoch)
        for index, generator in enumerate(self._generators):
            generator.manual_seed(entropy(self._seed, "generator", epoch, index))
        # Loaded shares differ, so their augmentation may; a batch that every process loads may not.
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
    """A batch sampler that gives one process's part of every batch of another one."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int, device: torch.device) -> None:
        self._batches, self._rank, self._world = batches, rank, world
        self._stream = RandomStream(device, "order")
        self._sizes: deque[tuple[int, int, bool]] = deque()

    def begin(self, stream: RandomStream) -> None:
        """Start an epoch, whose order is drawn from the stream."""
        self._stream = stream
        self._sizes.clear()

    def label(self, batch: Any) -> Shard:
        """Return a loaded batch with its sizes; workers load ahead, but in order."""
        samples, total, active = self._sizes.popleft()
        return Shard(batch, samples, total, active)

    def __iter__(self) -> Iterator[list[Any]]:
        iterator: Iterator[Any] | None = None
        while True:
            with self._stream:  # shared by all processes, whatever their loading draws
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
    """Return where a process's part of `total` samples starts and ends; parts differ by one."""
    return rank * total // world, (rank + 1) * total // world


def cut(batch: Any, rank: int, world: int) -> Shard:
    """Return a process's slice of a batch that has been loaded whole."""
    total = batch_size(split_batch(batch)[0])
    if total < 1:
        raise DataError("a batch of the fine-tuning data holds no samples. Remove it.")
    start, stop = bounds(total, rank, world)
    if world == 1 or stop == start:
        return Shard(batch, total, total, stop > start)
    return Shard(slice_batch(batch, start, stop), stop - start, total)


def digest(batch: Any) -> str:
    """Return a hash of the tensors of a batch, by which a replayed batch is recognised."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors_of(batch):
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        with suppress(RuntimeError, TypeError):  # sparse, quantised ...: shape and type must do
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            total.update(raw.numpy().tobytes())
    return total.hexdigest()


def _parts(data: Any) -> list[Any]:
    """Return the objects of a loader that may draw random numbers or care about epochs."""
    parts = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    parts.append(getattr(parts[2], "sampler", None))
    return list({id(part): part for part in parts if part is not None}.values())


def _rebuilt(loader: DataLoader[Any], sampler: _ShardSampler, generator: torch.Generator) -> DataLoader[Any]:
    """Return the same loader with another batch sampler.

    Its workers do not persist: theirs is a random state that no later epoch could be resumed from.
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
    """Raise `DataError` if an epoch (from 0) had no batch."""
    if not count and epoch == 0:
        raise DataError("the fine-tuning data is empty: there was no batch. Was it used up before?")
    if not count:
        raise DataError(
            f"the fine-tuning data gave no batch in epoch {epoch + 1}, although it did before. It must be iterable "
            "once per epoch: give a list or a DataLoader, not a generator, or epochs=1."
        )
