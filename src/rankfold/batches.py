"""Batches: what a loader may yield, and how a batch reaches a model. The same rules hold wherever rankfold takes data.

Data is an iterable of batches, such as a DataLoader or a list. One batch is:

| batch | inputs of the model | target |
|---|---|---|
| a tensor, or any object that is none of the below | the one argument | none |
| `(inputs,)`, `(inputs, target)`, the same as a list | see below | the second element |
| a mapping (dict, `BatchEncoding`) | keyword arguments | `"labels"`, `"label"` or `"target"`, if there is one |
| a named tuple with a field `labels`, `label` or `target` | the other fields, in order | that field |

`inputs` that are a tuple are several positional arguments, a mapping is keyword arguments, and anything else is the one
argument: a tensor, a list of samples, a dataclass. A model of two inputs therefore takes `((ids, mask), labels)` or
`{"ids": ..., "mask": ..., "labels": ...}`. Example inputs follow the same rule as `inputs`.

A tuple or list of three or more elements, such as `(ids, mask, labels)`, is refused, because it does not say which of
them are inputs. So is `(ids, mask)` where the example input is `(ids, mask)`; write `((ids, mask),)`. A list of samples
needs a tuple, too: `(samples,)`. None is a valid input, and as a target it stands for none. Calibration data that gives
the model fewer arguments than the example input does leads to a warning.

Samples lie along the first dimension of every tensor, or are the items of a list. `rankfold.outputs` describes what a
model may return.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any

from torch import Tensor, nn

from rankfold._tensors import map_items, tensors_of
from rankfold.errors import DataError, RankfoldWarning

TARGET_KEYS = ("labels", "label", "target")


def split_batch(batch: Any) -> tuple[Any, Any | None]:
    """Split one item of a loader into the model's inputs and the target.

    Parameters
    ----------
    batch : object
        As the module describes it. A model with several positional inputs takes ``((first, second), target)``.

    Returns
    -------
    inputs : object
        As `call_model` takes them.
    target : object or None
        None if the batch has none.

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
            f"a batch is a {kind} of {len(parts)} elements, and it does not say which of them are inputs. Expected "
            "(inputs, target) or (inputs,). Put several inputs of the model into a tuple, ((first, second), target), "
            "give a dict of keyword inputs with the target under 'labels', or put a list of samples into a tuple of "
            "one, (samples,); leave out what is neither input nor target."
        )
    if parts[0] is None:
        raise DataError("the inputs of a batch are None. Expected (inputs, target) or (inputs,).")
    return parts[0], parts[1] if len(parts) > 1 else None


def _named_target(fields: Mapping[Any, Any]) -> tuple[Any | None, dict[Any, Any]]:
    """Return the target among named fields, and the other fields."""
    targets = [key for key in TARGET_KEYS if key in fields]
    if len(targets) > 1:
        raise DataError(f"a batch has several targets: {targets}. Keep one of them.")
    inputs = {key: value for key, value in fields.items() if key not in targets}
    if not inputs:
        raise DataError(f"a batch holds no inputs, only {targets}. Add the model's inputs.")
    return fields[targets[0]] if targets else None, inputs


class MatchedBatches:
    """Batches that are compared with the example input as they come: the model is called in the same way with both.

    Parameters
    ----------
    batches : iterable
        The data.
    example : object
        The example input.
    purpose : str
        What the data is for, as messages say it.
    """

    def __init__(self, batches: Iterable[Any], example: Any, purpose: str) -> None:
        self.batches = batches
        self.example = example
        self.purpose = purpose
        self._warned = False

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
                f"a batch of the {self.purpose} data is built like the example input, but of a tuple or list the first "
                "element is the inputs and the second the target. Put the inputs into a tuple of one, "
                "((first, second),), or give ((first, second), target); (samples,) for a list of samples."
            )
        wanted, given = _arguments(self.example), _arguments(inputs)
        if given >= wanted or self._warned:
            return
        self._warned = True
        told = "" if target is None else "; the second element of a tuple or list is taken for the target"
        warnings.warn(
            f"the example input gives the model {wanted} arguments, the {self.purpose} data {given}{told}. Give "
            "batches ((first, second), target), or dicts of keyword inputs, to give it all of them.",
            RankfoldWarning,
            stacklevel=2,
        )


def _arguments(inputs: Any) -> int:
    """Return how many arguments inputs give to a model, those that are None not counted."""
    if isinstance(inputs, Mapping):
        return sum(value is not None for key, value in inputs.items() if key not in TARGET_KEYS)
    return sum(value is not None for value in inputs) if isinstance(inputs, tuple) else 1


def _alike(given: Any, example: Any) -> bool:
    """Whether two objects are built alike: tensors of the same kind and number of dimensions in the same places."""
    if isinstance(given, Tensor) and isinstance(example, Tensor):
        return given.ndim == example.ndim and given.is_floating_point() == example.is_floating_point()
    if isinstance(given, Mapping) and isinstance(example, Mapping):
        return set(given) == set(example)
    if isinstance(example, list):  # of samples: any number of them
        return isinstance(given, tuple | list) and all(_alike(item, example[0]) for item in given if example)
    if isinstance(given, tuple | list) and isinstance(example, tuple):
        return len(given) == len(example) and all(map(_alike, given, example))
    return type(given) is type(example) and not isinstance(given, tuple | list)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tuple's or mapping's items as its arguments, or the one argument."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a model's inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def batch_size(inputs: Any) -> int:
    """Return the number of samples: a list's length, else the first tensor's first size."""
    if isinstance(inputs, list):
        return len(inputs)
    if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], list):
        return len(inputs[0])
    tensors = tensors_of(inputs)
    return tensors[0].shape[0] if tensors and tensors[0].ndim else 1


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch, as a batch of the same form."""
    inputs, target = split_batch(batch)
    size = batch_size(inputs)
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        parts = [_sliced(part, start, stop, size) for part in (inputs, target)[: len(batch)]]
        return parts if isinstance(batch, list) else tuple(parts)
    return _sliced(batch, start, stop, size)


def leading(inputs: Any, count: int) -> Any:
    """Return the first `count` samples of one batch's inputs; all of them if some tensor has another first dimension.

    Such a tensor (the edges of a graph, say) may refer to samples by their number.
    """
    size = batch_size(inputs)
    cuttable = isinstance(inputs, list) or all(t.ndim and t.shape[0] == size for t in tensors_of(inputs))
    return _sliced(inputs, 0, count, size) if count < size and cuttable else inputs


def _sliced(value: Any, start: int, stop: int, size: int) -> Any:
    """Return an object like this one; tensors and lists inside of it that have `size` entries are sliced."""
    if (isinstance(value, Tensor) and value.ndim and value.shape[0] == size) or (
        isinstance(value, list) and len(value) == size
    ):
        return value[start:stop]
    return map_items(lambda item: _sliced(item, start, stop, size), value)


def iterate(batches: Iterable[Any], purpose: str) -> Iterator[Any]:
    """Yield the batches.

    Parameters
    ----------
    batches : iterable
        A loader, a list of batches, or any other iterable.
    purpose : str
        What the data is for, in the user's words, such as ``"calibration"``.

    Raises
    ------
    DataError
        If there is no batch at all, the object cannot be iterated over, or a worker process of a DataLoader died.
    """
    require_iterable(batches, purpose)
    empty = True
    with naming_dead_workers(purpose):
        for batch in batches:
            empty = False
            yield batch
    if empty:
        raise DataError(
            f"{purpose} data is empty: there was no batch. Was the iterator used up before, or is "
            "the data set smaller than the batch size with drop_last?"
        )


def require_iterable(batches: object, purpose: str) -> None:
    """Raise `DataError` if something is not an iterable of batches, or is a single batch."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"{purpose} data must be an iterable of batches (a DataLoader or a list). "
            f"Got {type(batches).__name__} instead; put a single batch into a list."
        )


@contextlib.contextmanager
def naming_dead_workers(purpose: str) -> Iterator[None]:
    """Turn torch's error of a DataLoader whose worker process died into a `DataError`."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise DataError(
            f"a worker process of the {purpose} data's loader died or hung: {error}. It may have run out of memory or "
            "been killed. Use fewer workers, or num_workers=0 to see its error."
        ) from error
