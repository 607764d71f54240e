"""What a batch is: the one convention by which data reaches a model, everywhere in the library.

A loader yields batches. A batch is the inputs alone, a tuple or list ``(inputs, target, ...)``, or
a mapping of keyword inputs in which ``"labels"``, ``"label"`` or ``"target"`` is the target. Inputs
(and example inputs) are a tuple of positional arguments, a mapping of keyword arguments, or
anything else: the single positional argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rankfold.errors import DataError, ModelError

TARGET_KEYS = ("labels", "label", "target")


def split_batch(batch: Any) -> tuple[Any, Any | None]:
    """Split one item of a loader into the model's inputs and the target.

    Parameters
    ----------
    batch : object
        A tuple or list is ``(inputs, target, ...)`` or ``(inputs,)``; a mapping holds keyword
        inputs and perhaps a target (`TARGET_KEYS`); anything else is the inputs alone. A model with
        several positional inputs takes ``((first, second), target)``.

    Returns
    -------
    inputs : object
        As `call_model` takes them.
    target : object or None
        None if the batch has none.

    Raises
    ------
    DataError
        If the batch is empty.
    """
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) > 1:
            raise DataError(f"a batch has several targets: {found}. Keep one of them.")
        inputs = {key: value for key, value in batch.items() if key not in found}
        if not inputs:
            raise DataError(f"a batch holds no inputs, only {found}. Add the model's keyword inputs.")
        return inputs, batch[found[0]] if found else None
    if isinstance(batch, tuple | list):
        if not batch:
            raise DataError("a batch is an empty tuple or list. Expected (inputs, target) or (inputs,).")
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tuple's or mapping's items as its arguments, or the one argument."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def copied(tensors: Any) -> Any:
    """Return inputs or outputs that may be changed in place without harm to those given."""
    return tree_map_only(Tensor, torch.clone, tensors)


def to_device(obj: Any, device: torch.device | str | None) -> Any:
    """Return the object with every tensor inside it on the device; None leaves it as it is."""
    if device is None:
        return obj
    if isinstance(obj, Tensor):
        return obj.to(device)
    if isinstance(obj, Mapping):
        return {key: to_device(value, device) for key, value in obj.items()}
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):  # a named tuple takes them one by one
        return type(obj)(*(to_device(value, device) for value in obj))
    if isinstance(obj, tuple):
        return tuple(to_device(value, device) for value in obj)
    if isinstance(obj, list):
        return [to_device(value, device) for value in obj]
    return obj


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in evaluation mode, without gradients, leaving no trace.

    Afterwards every module is in the mode that it was in, and torch's random state (that of the
    CPU and of the model's device) is as before: a loader draws from it even without shuffling.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = model_device(model)
    accelerators = [device] if device is not None and device.type not in ("cpu", "meta") else []
    with (
        torch.random.fork_rng(devices=accelerators, device_type=accelerators[0].type if accelerators else "cuda"),
        torch.no_grad(),
    ):
        try:
            for module, _ in modes:  # one by one: `eval()` may be overridden to do more, which nothing would undo
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


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
        a, b = a.float(), b.to(a.device).float()
        distance += float((a - b).square().sum())
        norm += float(b.square().sum())
    return distance, norm


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
    return tree_map_only(Tensor, lambda t: t[:count], inputs)


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
        If there is no batch at all, or the object cannot be iterated over.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"{purpose} data must be an iterable of batches (a DataLoader or a list). "
            f"Got {type(batches).__name__} instead; put a single batch into a list."
        )
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise DataError(
            f"{purpose} data is empty: there was no batch. Was the iterator used up before, or is "
            "the data set smaller than the batch size with drop_last?"
        )
