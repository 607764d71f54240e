"""Access to the tensors inside nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(obj: Any) -> list[Tensor]:
    """Return every tensor inside an object, in order."""
    if isinstance(obj, Tensor):
        return [obj]
    if isinstance(obj, Mapping):
        return [tensor for value in obj.values() for tensor in tensors_of(value)]
    if isinstance(obj, tuple | list):
        return [tensor for value in obj for tensor in tensors_of(value)]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return [t for f in dataclasses.fields(obj) for t in tensors_of(getattr(obj, f.name))]
    return []


def float_tensors(obj: Any) -> list[Tensor]:
    """Return every floating-point tensor inside an object, in order."""
    return [tensor for tensor in tensors_of(obj) if tensor.is_floating_point()]


def map_tensors(change: Callable[[Tensor], Any], obj: Any) -> Any:
    """Return a copy of an object with every tensor inside it replaced by `change(tensor)`."""
    return change(obj) if isinstance(obj, Tensor) else map_items(lambda item: map_tensors(change, item), obj)


def map_items(change: Callable[[Any], Any], obj: Any) -> Any:
    """Return a copy of a container with every item replaced by `change(item)`; other objects are returned unchanged."""
    if isinstance(obj, Mapping):
        items = {key: change(value) for key, value in obj.items()}
        if type(obj) is dict or not isinstance(obj, MutableMapping):
            return items
        twin = copy.copy(obj)  # its class may have further attributes, as the encodings of tokenizers do
        for key, value in items.items():
            twin[key] = value
        return twin
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):  # named tuples take one argument per item
        return type(obj)(*map(change, obj))
    if isinstance(obj, tuple | list):
        return (tuple if isinstance(obj, tuple) else list)(map(change, obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type) and tensors_of(obj):
        twin = copy.copy(obj)
        for f in dataclasses.fields(obj):
            object.__setattr__(twin, f.name, change(getattr(obj, f.name)))
        return twin
    return obj


def copied(tensors: Any) -> Any:
    """Return a copy of inputs or outputs with cloned tensors."""
    return map_tensors(torch.clone, tensors)


def detached(tensors: Any) -> Any:
    """Return inputs or outputs with detached tensors."""
    return map_tensors(torch.detach, tensors)


def ordinary(tensors: Any) -> Any:
    """Return a batch that a step can train on.

    Tensors created in inference mode, which cannot be saved for backward, are cloned. Those that were computed with
    gradients are detached, because the backward pass would continue into the network that computed them.
    """
    return map_tensors(lambda t: t.clone() if t.is_inference() else t.detach() if t.grad_fn is not None else t, tensors)


def to_device(obj: Any, device: torch.device | str | None) -> Any:
    """Return the object with every tensor inside it on the device; for None, the object itself."""
    return obj if device is None else map_tensors(lambda tensor: tensor.to(device), obj)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format by the number of dimensions."""


def in_memory_format(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Return a tensor in a memory format; tensors that are neither images nor volumes are returned unchanged."""
    if tensor.ndim not in _CHANNELS_LAST:
        return tensor
    return tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.ndim] if channels_last else torch.contiguous_format)


def arrange_(parameters: Iterable[nn.Parameter], *, channels_last: bool) -> None:
    """Store parameters in a memory format, in place."""
    for parameter in parameters:
        parameter.data = in_memory_format(parameter.data, channels_last=channels_last)


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor is stored with its channels last, and not contiguously as well."""
    form = _CHANNELS_LAST.get(tensor.ndim)
    return form is not None and tensor.is_contiguous(memory_format=form) and not tensor.is_contiguous()


def clock(device: torch.device | None) -> float:
    """Return the time in seconds, when a device has finished its work: accelerators work in the background."""
    if device is not None and device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def model_device(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer; None if it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
