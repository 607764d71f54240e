"""What a batch is: the one convention by which data reaches a model, everywhere in the library.

A loader yields batches. A batch is one of these:

- a tuple or list ``(inputs,)`` or ``(inputs, target)``; with more elements it is refused, since nothing tells which of
  them are inputs;
- a mapping of keyword inputs, in which ``"labels"``, ``"label"`` or ``"target"`` is the target;
- a named tuple with a field of one of these names, which is the target: the other fields are the inputs, in order
  (a named tuple without such a field is a tuple);
- anything else: the inputs alone.

Inputs (and example inputs) are a tuple of positional arguments, a mapping of keyword arguments, or
anything else, such as a tensor, a list or a dataclass: the single positional argument.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import DataError, ModelError, RankfoldWarning

MASKED = 1e18
"""Magnitude of values that only a mask has (the least float, say): their squares leave the range of float32."""
FAR = 1e8
"""Magnitude of values that a mask may have (-1e9, say), and few outputs."""
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
            f"a batch is a {kind} of {len(parts)} elements, and nothing tells which of them are inputs. Expected "
            "(inputs, target) or (inputs,). Put several inputs of the model into a tuple, ((first, second), target), "
            "give a dict of keyword inputs with the target under 'labels', or put a list of samples into a tuple of "
            "one, (samples,); leave out what is neither input nor target."
        )
    if parts[0] is None:
        raise DataError("the inputs of a batch are None. Expected (inputs, target) or (inputs,).")
    return parts[0], parts[1] if len(parts) > 1 else None


def _named_target(fields: Mapping[Any, Any]) -> tuple[Any | None, dict[Any, Any]]:
    """Return the target among named fields, and the other fields."""
    found = [key for key in TARGET_KEYS if key in fields]
    if len(found) > 1:
        raise DataError(f"a batch has several targets: {found}. Keep one of them.")
    inputs = {key: value for key, value in fields.items() if key not in found}
    if not inputs:
        raise DataError(f"a batch holds no inputs, only {found}. Add the model's inputs.")
    return fields[found[0]] if found else None, inputs


class MatchedBatches:
    """Batches that are held against the example input as they come, because the model is to be called alike.

    Parameters
    ----------
    batches : iterable
        The data.
    example : object
        The example input.
    purpose : str
        What the data is for, in the user's words.
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
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def map_tensors(change: Callable[[Tensor], Any], obj: Any) -> Any:
    """Return an object like this one with every tensor inside it changed; the object itself is left as it is.

    Tensors are found where `tensors_of` finds them. Whatever holds none is shared, not copied.
    """
    if isinstance(obj, Tensor):
        return change(obj)
    if isinstance(obj, Mapping):
        items = {key: map_tensors(change, value) for key, value in obj.items()}
        if type(obj) is dict or not isinstance(obj, MutableMapping):
            return items
        twin = copy.copy(obj)  # its class may have more to it, as the encodings of tokenizers do
        for key, value in items.items():
            twin[key] = value
        return twin
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):  # a named tuple takes them one by one
        return type(obj)(*(map_tensors(change, value) for value in obj))
    if isinstance(obj, tuple | list):
        return (tuple if isinstance(obj, tuple) else list)(map_tensors(change, value) for value in obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type) and tensors_of(obj):
        twin = copy.copy(obj)
        for f in dataclasses.fields(obj):
            object.__setattr__(twin, f.name, map_tensors(change, getattr(obj, f.name)))
        return twin
    return obj


def copied(tensors: Any) -> Any:
    """Return inputs or outputs that may be changed in place without harm to those given."""
    return map_tensors(torch.clone, tensors)


def detached(tensors: Any) -> Any:
    """Return inputs or outputs without their graph, whatever they are nested in."""
    return map_tensors(torch.detach, tensors)


def ordinary(tensors: Any) -> Any:
    """Return a batch whose tensors autograd can keep: those made in inference mode are copied."""
    return map_tensors(lambda t: t.clone() if t.is_inference() else t, tensors)


def to_device(obj: Any, device: torch.device | str | None) -> Any:
    """Return the object with every tensor inside it on the device; None leaves it as it is."""
    return obj if device is None else map_tensors(lambda tensor: tensor.to(device), obj)


def model_device(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer; None if it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def tensors_of(obj: Any) -> list[Tensor]:
    """Return every tensor inside nested tuples, lists, mappings and dataclasses, in order.

    A mapping is read in the order of its keys as they were put in.
    """
    if isinstance(obj, Tensor):
        return [obj]
    if isinstance(obj, Mapping):
        return [tensor for value in obj.values() for tensor in tensors_of(value)]
    if isinstance(obj, tuple | list):
        return [tensor for value in obj for tensor in tensors_of(value)]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return [t for f in dataclasses.fields(obj) for t in tensors_of(getattr(obj, f.name))]
    return []


def squared_distance(output: Any, reference: Any) -> tuple[float, float]:
    """Return ``(||output - reference||^2, ||reference||^2)`` over all floating tensors inside.

    Where the reference is infinite, as masked scores are, nothing is compared; see `distance_and_energy`.

    Raises
    ------
    ModelError
        If the two hold different numbers or shapes of tensors.
    """
    ours = [t for t in tensors_of(output) if t.is_floating_point()]
    theirs = [t for t in tensors_of(reference) if t.is_floating_point()]
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1] or not ours:
        raise ModelError(f"outputs of shapes {shapes[0]} cannot be compared with the reference's {shapes[1]}.")
    distance = norm = 0.0
    for a, b in zip(ours, theirs, strict=True):
        # float32 sums of squares are exact enough for a comparison, and every device has them.
        found = distance_and_energy(a.float(), b.to(a.device).float())
        distance, norm = distance + found[0], norm + found[1]
    return distance, norm


def distance_and_energy(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return ``||ours - theirs||^2`` and ``||theirs||^2`` of two tensors of one shape, where nothing is masked.

    Infinite values, and finite ones of `MASKED` and beyond, are taken for masked scores: they have to be the same
    values in the same places, or the distance is infinite. So is it if there is NaN, which is equal to nothing.
    Values of `FAR` and beyond count as masked, too, if every one of them is the same in both.
    """
    distance, energy = float((ours - theirs).square().sum()), float(theirs.square().sum())
    if math.isfinite(distance) and energy < FAR**2:
        return distance, energy
    size = theirs.abs()
    masked = ~(size < MASKED)
    if not torch.equal(ours[masked], theirs[masked]):
        return math.inf, float(theirs[~masked].square().sum())
    far = size >= FAR
    if torch.equal(ours[far], theirs[far]) and not bool(far.all()):
        masked |= far
    distance, energy = (float(t[~masked].square().sum()) for t in (ours - theirs, theirs))
    return math.inf if math.isnan(distance) else distance, energy


def batch_size(inputs: Any) -> int:
    """Return how many samples there are: a list's length, else the first tensor's first size."""
    if isinstance(inputs, list):
        return len(inputs)
    if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], list):
        return len(inputs[0])
    tensors = tensors_of(inputs)
    return tensors[0].shape[0] if tensors and tensors[0].ndim else 1


def leading(inputs: Any, count: int) -> Any:
    """Return the first `count` samples of one batch's inputs.

    All of them, where it is not plain which dimension counts samples: a list is cut, and tensors if every one has as
    many entries as there are samples in its first dimension.
    """
    size = batch_size(inputs)
    if count >= size:
        return inputs
    if isinstance(inputs, list):
        return inputs[:count]
    if not tensors_of(inputs) or not all(t.ndim and t.shape[0] == size for t in tensors_of(inputs)):
        return inputs
    return map_tensors(lambda tensor: tensor[:count], inputs)


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
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"{purpose} data must be an iterable of batches (a DataLoader or a list). "
            f"Got {type(batches).__name__} instead; put a single batch into a list."
        )
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
