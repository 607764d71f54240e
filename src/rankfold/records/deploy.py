"""Bytes of weights and buffers at the deployment data type."""

from __future__ import annotations

import math

import torch

from rankfold.errors import UnknownNameError
from rankfold.records.blueprint import BiasSpec, ConvSpec, GaugedSpec, LinearSpec, ReshapeSpec, Stage
from rankfold.records.layer import LayerInfo

DEPLOY_DTYPES = ("float32", "float16", "bfloat16", "int8")
"""Data types at which a model of any data type can be priced."""

INDEX_BYTES = 4
WORD_BYTES = 4  # with int8, scales are float32, biases int32, and parameters outside of layers float32


def check_deploy_dtype(deploy_dtype: str | None) -> None:
    """Raise `UnknownNameError` for an unknown deployment data type; None stands for the model's own."""
    if deploy_dtype is not None and deploy_dtype not in DEPLOY_DTYPES:
        raise UnknownNameError("deployment data type", str(deploy_dtype), DEPLOY_DTYPES)


def item_bytes(dtype: str) -> int:
    """Return the bytes of one element of a data type, such as ``"float32"``."""
    return getattr(torch, dtype).itemsize


def stage_bytes(stage: Stage, own: str, deploy_dtype: str | None = None) -> int:
    """Return the bytes of one stage, including its indices, at a deployment data type or by default the layer's `own`.

    With ``"int8"``, a weight takes one byte, the scale of each output channel of the stage four bytes (float32), and a
    bias four bytes (int32).
    """
    biases = stage.params - stage.weights
    return _bytes(stage.weights, biases, _scaled_channels(stage), own, deploy_dtype) + stage.indices * INDEX_BYTES


def layer_bytes(layer: LayerInfo, deploy_dtype: str | None = None) -> int:
    """Return the bytes of a dense layer, by the rule of `stage_bytes`."""
    biases = layer.out_channels if layer.bias else 0
    return _bytes(math.prod(layer.weight_shape), biases, layer.out_channels, layer.dtype, deploy_dtype)


def outside_bytes(elements: int, dtype: str, deploy_dtype: str | None = None) -> int:
    """Return the bytes of parameters and buffers outside of layers.

    Floats take the size of the deployment data type, or four bytes if it is int8; integers do not change.
    """
    if deploy_dtype is None or not getattr(torch, dtype).is_floating_point:
        return elements * item_bytes(dtype)
    return elements * (WORD_BYTES if deploy_dtype == "int8" else item_bytes(deploy_dtype))


def _bytes(weights: int, biases: int, channels: int, own: str, deploy_dtype: str | None) -> int:
    if deploy_dtype == "int8":
        return weights + WORD_BYTES * (channels + biases)
    return (weights + biases) * item_bytes(deploy_dtype or own)


def _scaled_channels(stage: Stage) -> int:
    """Return the output channels of the layer in which a stage stores its weights."""
    match stage:
        case ConvSpec():
            return stage.out_channels
        case LinearSpec():
            return stage.out_features
        case GaugedSpec():
            rows = stage.rank if stage.side == "input" else stage.size - stage.rank
            return stage.groups * rows if stage.weights else 0
        case ReshapeSpec() | BiasSpec():
            return 0
