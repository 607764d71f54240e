"""The data of a run: each process's share of every batch, the same again whenever it is asked."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from rankfold._tensors import tensors_of
from rankfold.batches import batch_size, naming_dead_workers, slice_batch, split_batch
from rankfold.errors import DataError
from rankfold.tune.randomness import Stream, entropy, preserved


@dataclass(frozen=True, slots=True)
class Share:
    """What one process gets of a batch.

    Parameters
    ----------
    batch : object
        Inputs and target, as the loader gave them.
    samples, total : int
        Samples in it, and in the whole batch.
    active : bool
        False if there are fewer samples than processes and none is left for this one: it gets the
        whole batch then, to keep the others company, and its loss counts nothing.
    """

    batch: Any
    samples: int
    total: int
    active: bool = True

    @property
    def weight(self) -> float:
        """The share of the whole batch, 0..1; 0 if it is not active."""
        return self.samples / self.total if self.active else 0.0


class Feed:
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
        Of the order and of augmentation.
    rank, world : int
        This process's number and how many there are.
    device : torch.device
        The training device.

    Raises
    ------
    DataError
        If the data is none, cannot be iterated over, is empty, or is sharded already.
    """

    def __init__(self, data: Iterable[Any] | None, *, seed: int, rank: int, world: int, device: torch.device) -> None:
        if data is None:
            raise DataError("there is no data to fine-tune on. Give FineTune(data=...) a DataLoader.")
        if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
            raise DataError(
                f"fine-tuning data must be an iterable of batches (a DataLoader or a list). Got "
                f"{type(data).__name__} instead; put a single batch into a list."
            )
        self._data, self._seed, self._device = data, seed, device
        self._rank, self._world = rank, world
        self.once = iter(data) is data if not isinstance(data, DataLoader) else False
        self._sharded: _Shard | None = None
        self._loader: Iterable[Any] = data
        owners = _parts(data)
        if any(isinstance(owner, DistributedSampler) for owner in owners):
            raise DataError(
                "the DataLoader has a DistributedSampler. Give a plain DataLoader with the global "
                "batch size: fine-tuning shares each batch among the processes itself."
            )
        # A subclass may load in ways of its own, and an iterable data set cannot be indexed.
        plain = type(data) is DataLoader and not isinstance(data.dataset, IterableDataset)
        if isinstance(data, DataLoader) and plain and data.batch_sampler is not None:
            self._sharded = _Shard(data.batch_sampler, rank, world, device)
            self._loader = _rebuilt(data, self._sharded, self._own_generator())
        self._epoch_setters = [owner for owner in owners if hasattr(owner, "set_epoch")]
        self._generators = {
            id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)
        }
        self._states = {key: g.get_state() for key, g in self._generators.items()}

    def _own_generator(self) -> torch.Generator:
        self._base = torch.Generator()
        return self._base

    def close(self) -> None:
        """Put the state of the user's own generators back."""
        for key, generator in self._generators.items():
            generator.set_state(self._states[key])

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
            found = sum(1 for _ in self.epoch(0))
        if not found:
            raise _empty(0)
        return found

    def epoch(self, epoch: int) -> Generator[Share, None, None]:
        """Yield this process's shares of the batches of an epoch (from 0), always the same ones."""
        for owner in self._epoch_setters:
            owner.set_epoch(epoch)
        for index, generator in enumerate(self._generators.values()):
            generator.manual_seed(entropy(self._seed, "generator", epoch, index))
        # Loaded shares differ, so their augmentation may; a batch that every process loads may not.
        own = self._rank if self._sharded else 0
        stream = Stream(self._device, self._seed, "data", epoch, own)
        if self._sharded:
            self._sharded.begin(Stream(self._device, self._seed, "order", epoch))
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


class _Shard(Sampler[list[Any]]):
    """A batch sampler that gives one process's part of every batch of another one."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int, device: torch.device) -> None:
        self._batches, self._rank, self._world = batches, rank, world
        self._stream = Stream(device, "order")
        self._sizes: deque[tuple[int, int, bool]] = deque()

    def begin(self, stream: Stream) -> None:
        """Start an epoch, whose order is drawn from the stream."""
        self._stream = stream
        self._sizes.clear()

    def label(self, batch: Any) -> Share:
        """Return a loaded batch with its sizes; workers load ahead, but in order."""
        samples, total, active = self._sizes.popleft()
        return Share(batch, samples, total, active)

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


def cut(batch: Any, rank: int, world: int) -> Share:
    """Return a process's slice of a batch that has been loaded whole."""
    total = batch_size(split_batch(batch)[0])
    if total < 1:
        raise DataError("a batch of the fine-tuning data holds no samples. Remove it.")
    start, stop = bounds(total, rank, world)
    if world == 1 or stop == start:
        return Share(batch, total, total, stop > start)
    return Share(slice_batch(batch, start, stop), stop - start, total)


def digest(batch: Any) -> str:
    """Return a hash of the tensors of a batch, by which a replayed batch is recognised."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors_of(batch):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        with suppress(RuntimeError, TypeError):  # sparse, quantised ...: shape and type must do
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().tobytes())
    return found.hexdigest()


def _parts(data: Any) -> list[Any]:
    """Return the objects of a loader that may draw random numbers or care about epochs."""
    found: list[Any] = [data]
    for name in ("sampler", "batch_sampler", "dataset"):
        with suppress(AttributeError):
            found.append(getattr(data, name))
    inner = getattr(getattr(data, "batch_sampler", None), "sampler", None)
    unique = {id(part): part for part in [*found, inner] if part is not None}
    return list(unique.values())


def _rebuilt(loader: DataLoader[Any], sampler: _Shard, generator: torch.Generator) -> DataLoader[Any]:
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


def _empty(epoch: int) -> DataError:
    if epoch == 0:
        return DataError("the fine-tuning data is empty: there was no batch. Was it used up before?")
    return DataError(
        f"the fine-tuning data gave no batch in epoch {epoch + 1}, although it did before. It must "
        "be iterable anew for every epoch: give a list or a DataLoader, not a generator, or epochs=1."
    )


def require_batches(found: int, epoch: int) -> None:
    """Raise `DataError` if an epoch (from 0) had no batch."""
    if not found:
        raise _empty(epoch)
