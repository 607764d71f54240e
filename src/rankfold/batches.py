"""Batches that a loader may yield, and how they are passed to a model. The rules hold wherever rankfold takes data.

Data is an iterable of batches, such as a DataLoader or a list. One batch is:

| batch | inputs of the model | target |
|---|---|---|
| a tensor, or any object that is not listed below | the single argument | none |
| `(inputs,)`, `(inputs, target)`, or the same as a list | see below | the second element |
| a mapping (dict, `BatchEncoding`) | keyword arguments | `"labels"`, `"label"` or `"target"`, if present |
| a named tuple with a field `labels`, `label` or `target` | the other fields, in order | that field |

`inputs` that are a tuple are positional arguments, a mapping is keyword arguments, and anything else is the single
argument: a tensor, a list of samples, a dataclass. A model with two inputs therefore takes `((ids, mask), labels)` or
`{"ids": ..., "mask": ..., "labels": ...}`. Example inputs follow the same rule as `inputs`.

A tuple or list of three or more elements, such as `(ids, mask, labels)`, is rejected, because it does not specify which
of them are inputs. So is `(ids, mask)` if the example input is `(ids, mask)`; write `((ids, mask),)`. A list of samples
needs a tuple, too: `(samples,)`. None is a valid input; as a target, it means that there is none. A warning reports
calibration data with fewer arguments than the example input.

Samples are along the first dimension of every tensor, or are the items of a list. `rankfold.outputs` describes what a
model may return.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

from torch import Tensor, nn

from rankfold._tensors import map_items, tensors_of
from rankfold.errors import DataError, RankfoldWarning

TARGET_KEYS = ("labels", "label", "target")


def split_batch(batch: Any) -> tuple[Any, Any | None]:
    """Return a batch's inputs, as `call_model` takes them, and its target, or None if there is none.

    Raises
    ------
    DataError
        If the batch is empty, has no inputs, several targets, or more elements than inputs and target.
    """
    if isinstance(batch, Mapping):
        target, inputs = _named_target(batch)
        return inputs, target
    if isinstance(batch, tuple):
        fields: dict[str, Any] = dict(zip(getattr(batch, "_fields", ()), batch, strict=False))
        if any(key in fields for key in TARGET_KEYS):
            target, rest = _named_target(fields)
            return next(iter(rest.values())) if len(rest) == 1 else tuple(rest.values()), target
    if not isinstance(batch, tuple | list):
        return batch, None
    parts = list(batch)
    if not parts:
        raise DataError("a batch is an empty tuple or list. Expected (inputs, target) or (inputs,).")
    if len(parts) > 2:
        kind = type(batch).__name__
        raise DataError(
            f"a batch is a {kind} of {len(parts)} elements, which does not specify which of them are inputs. Expected "
            "(inputs, target) or (inputs,). Put several inputs of the model into a tuple, ((first, second), target), "
            "use a dict of keyword inputs with the target under 'labels', or put a list of samples into a tuple, "
            "(samples,); remove elements that are neither input nor target."
        )
    if parts[0] is None:
        raise DataError("the inputs of a batch are None. Expected (inputs, target) or (inputs,).")
    return parts[0], parts[1] if len(parts) > 1 else None


def _named_target(fields: Mapping[Any, Any]) -> tuple[Any | None, dict[Any, Any]]:
    """Return the target among named fields, and the other fields."""
    targets = [key for key in TARGET_KEYS if key in fields]
    if len(targets) > 1:
        raise DataError(f"a batch has several targets: {targets}. Keep only one of them.")
    inputs = {key: value for key, value in fields.items() if key not in targets}
    if not inputs:
        raise DataError(f"a batch has no inputs, only {targets}. Add the model's inputs.")
    return fields[targets[0]] if targets else None, inputs


@dataclass(eq=False)
class MatchedBatches:
    """Batches that are checked against the example input; `purpose` describes the data in messages."""

    batches: Iterable[Any]
    example: Any
    purpose: str
    _warned: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[Any]:
        for batch in iterate(self.batches, self.purpose):
            self._check(batch)
            yield batch

    def __length_hint__(self) -> int:
        return length_hint(self.batches, 0)

    def _check(self, batch: Any) -> None:
        inputs, target = split_batch(batch)
        several = isinstance(batch, tuple | list) and (len(batch) == 2 or isinstance(self.example, list))
        if several and _alike(batch, self.example) and not _alike(inputs, self.example):
            raise DataError(
                f"a batch of the {self.purpose} data has the structure of the example input, but the first element of "
                "a tuple or list is the inputs and the second the target. Put the inputs into a tuple, "
                "((first, second),) or ((first, second), target); (samples,) for a list of samples."
            )
        wanted, given = _arguments(self.example), _arguments(inputs)
        if given >= wanted or self._warned:
            return
        self._warned = True
        hint = "" if target is None else "; the second element of a tuple or list is the target"
        warnings.warn(
            f"the example input has {wanted} arguments for the model, the {self.purpose} data {given}{hint}. To pass "
            "all of them, use batches ((first, second), target), or dicts of keyword inputs.",
            RankfoldWarning,
            stacklevel=2,
        )


def _arguments(inputs: Any) -> int:
    """Return the number of arguments that are not None."""
    if isinstance(inputs, Mapping):
        return sum(value is not None for key, value in inputs.items() if key not in TARGET_KEYS)
    return sum(value is not None for value in inputs) if isinstance(inputs, tuple) else 1


def _alike(given: Any, example: Any) -> bool:
    """Return whether two objects have the same structure, with tensors of the same kind and number of dimensions."""
    if isinstance(given, Tensor) and isinstance(example, Tensor):
        return given.ndim == example.ndim and given.is_floating_point() == example.is_floating_point()
    if isinstance(given, Mapping) and isinstance(example, Mapping):
        return set(given) == set(example)
    if isinstance(example, list):  # any number of samples
        return isinstance(given, tuple | list) and all(_alike(item, example[0]) for item in given if example)
    if isinstance(given, tuple | list) and isinstance(example, tuple):
        return len(given) == len(example) and all(map(_alike, given, example))
    return type(given) is type(example) and not isinstance(given, tuple | list)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model with its inputs as `arguments` splits them."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a model's inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def batch_size(inputs: Any) -> int:
    """Return the number of samples: a list's length, otherwise the first tensor's first dimension."""
    if isinstance(inputs, list):
        return len(inputs)
    if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], list):
        return len(inputs[0])
    tensors = tensors_of(inputs)
    return tensors[0].shape[0] if tensors and tensors[0].ndim else 1


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch, as a batch of the same structure."""
    inputs, target = split_batch(batch)
    size = batch_size(inputs)
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        parts = [_sliced(part, start, stop, size) for part in (inputs, target)[: len(batch)]]
        return parts if isinstance(batch, list) else tuple(parts)
    return _sliced(batch, start, stop, size)


def leading(inputs: Any, count: int) -> Any:
    """Return the first `count` samples of one batch's inputs; all of them if it cannot be cut (`pieces`)."""
    return next(pieces(inputs, count))


def pieces(inputs: Any, count: int) -> Iterator[Any]:
    """Yield one batch's inputs in pieces of at most `count` samples; whole if a tensor has another first dimension.

    Such a tensor (the edges of a graph, for example) may refer to samples by index.
    """
    size = batch_size(inputs)
    cuttable = isinstance(inputs, list) or all(t.ndim and t.shape[0] == size for t in tensors_of(inputs))
    if count >= size or not cuttable:
        yield inputs
        return
    for start in range(0, size, count):
        yield _sliced(inputs, start, start + count, size)


@dataclass(frozen=True, eq=False, slots=True)
class LeadingBatches:
    """The first batches without targets, up to `samples` samples; the last batch is truncated if possible.

    `example` is the example input that the batches are checked against, if there is one (`MatchedBatches`).
    """

    batches: Iterable[Any]
    samples: int
    purpose: str

    @property
    def example(self) -> Any:
        """What the batches are checked against, or None."""
        return getattr(self.batches, "example", None)

    def __iter__(self) -> Iterator[tuple[Any, None]]:
        missing = self.samples
        for batch in iterate(self.batches, self.purpose):
            inputs = leading(split_batch(batch)[0], missing)
            yield inputs, None
            missing -= batch_size(inputs)
            if missing <= 0:
                return


def _sliced(value: Any, start: int, stop: int, size: int) -> Any:
    """Return the object with all tensors and lists of `size` entries sliced."""
    if (isinstance(value, Tensor) and value.ndim and value.shape[0] == size) or (
        isinstance(value, list) and len(value) == size
    ):
        return value[start:stop]
    return map_items(lambda item: _sliced(item, start, stop, size), value)


def iterate(batches: Iterable[Any], purpose: str) -> Iterator[Any]:
    """Yield the batches; `purpose` describes the data in messages, such as ``"calibration"``.

    Raises
    ------
    DataError
        If there are no batches, the object is not iterable, or a worker process of a DataLoader died.
    """
    require_iterable(batches, purpose)
    empty = True
    with naming_dead_workers(purpose):
        for batch in batches:
            empty = False
            yield batch
    if empty:
        raise DataError(
            f"{purpose} data is empty: it has no batch. Was the iterator exhausted before, or is "
            "the data set smaller than the batch size with drop_last?"
        )


def require_iterable(batches: object, purpose: str) -> None:
    """Raise `DataError` if an object is not an iterable of batches, or is a single batch."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"{purpose} data must be an iterable of batches (a DataLoader or a list). "
            f"Got {type(batches).__name__} instead; put a single batch into a list."
        )


@contextlib.contextmanager
def naming_dead_workers(purpose: str) -> Iterator[None]:
    """Convert torch's error for a dead DataLoader worker into a `DataError`."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise DataError(
            f"a worker process of the {purpose} data's loader died or hung: {error}. It may have run out of memory or "
            "been killed. Use fewer workers, or num_workers=0 to see its error."
        ) from error
