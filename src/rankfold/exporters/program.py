"""Capture a model as a graph, from which all formats are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold._tensors import copied, detached, map_tensors
from rankfold.batches import arguments, batch_size
from rankfold.inventory import on_device_of, trace, undisturbed


def captured(model: nn.Module, example_input: Any, *, dynamic_batch: bool = True) -> torch.export.ExportedProgram:
    """Return the graph of a model in evaluation mode, without gradients.

    Parameters
    ----------
    model : Module
        The model; it is left unchanged.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    dynamic_batch : bool
        Whether the first dimension of tensors that have the batch's size there may vary.

    Raises
    ------
    ModelError
        If torch cannot capture the model.
    """
    inputs = copied(detached(on_device_of(model, example_input)))
    if dynamic_batch:
        inputs = several(inputs)
    count = batch_size(inputs)
    batch = torch.export.Dim("batch")
    args, kwargs = arguments(inputs)
    shapes = _shapes(kwargs or args, count, batch) if dynamic_batch else None
    advice = "Its forward must consist of tensor operations that torch.export can trace."
    if dynamic_batch:
        advice = f"If the model needs a fixed batch size, set {spelled('dynamic_batch', False)}."
    with undisturbed(model):
        return trace(model, inputs, advice=advice, shapes=shapes)


def several(inputs: Any) -> Any:
    """Return inputs of at least two samples, by repeating a single one: torch's exporter fixes a batch of one."""
    count = batch_size(inputs)
    if count != 1:
        return inputs
    return map_tensors(lambda t: t.repeat(2, *[1] * (t.ndim - 1)) if _batched(t, count) else t, inputs)


def _batched(tensor: Tensor, count: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == count


def _shapes(value: Any, count: int, batch: Any) -> Any:
    """Return the variable dimensions of arguments, in their structure; None for what does not vary."""
    if isinstance(value, Tensor):
        return {0: batch} if _batched(value, count) else None
    if isinstance(value, dict):
        return {key: _shapes(item, count, batch) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_shapes(item, count, batch) for item in value)
    return None
