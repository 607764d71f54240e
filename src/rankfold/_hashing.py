"""Content hashes: two tensors, models or batches have the same hash exactly if they are equal."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold._state import extra_state, own_state

DEEPEST = 50
"""Maximum depth to which containers are followed; deeper or recursive content counts as hidden."""


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 hash of named tensors: names, data types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        for tensor in dense_parts(tensors[name].detach().cpu()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_hash(model: nn.Module) -> str:
    """Return the SHA-256 hash of a model's parameters and persistent buffers."""
    extra = {name: value for name, value in extra_state(model).items() if isinstance(value, Tensor)}
    own = {name: tensor for name, tensor in own_state(model).items() if not nn.parameter.is_lazy(tensor)}
    return tensor_hash(own | extra)


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that make up a tensor: itself, or the parts of a sparse, nested or quantized one."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    return [tensor.resolve_conj().resolve_neg()]


def module_hash(model: nn.Module) -> str:
    """Return the SHA-256 hash of a model: its repr, state, parameters, buffers, and devices."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: t for name, t in own.items() if not nn.parameter.is_lazy(t)}
    devices = sorted({str(t.device) for t in tensors.values()})
    return json_hash([repr(model), state_hash(model), tensor_hash(tensors), devices])


def content_hash(value: Any) -> str | None:
    """Return the SHA-256 hash of data: nested tensors, arrays, numbers and text.

    None if the data has no tensor but an object whose content is not accessible (an image, a batch class).
    """
    digest = hashlib.sha256()
    tensors, hidden = _read(value, digest)
    return None if hidden and not tensors else digest.hexdigest()


def _read(value: Any, digest: Any, depth: int = 0) -> tuple[int, int]:
    """Feed a value to a hash; return its number of tensors, and of objects whose content is not accessible."""
    parts: list[Any]
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        digest.update(tensor_hash({"": value.resolve_conj().resolve_neg()}).encode())
        return 1, 0
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        return 1, 0
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum | torch.dtype):
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="surrogatepass"))
        return 0, 0
    if depth > DEEPEST:
        return 0, 1
    if isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    else:
        digest.update(f"{type(value).__module__}.{type(value).__qualname__};".encode())
        return 0, 1
    digest.update(f"{type(value).__name__} {len(parts)};".encode())
    counts = [_read(part, digest, depth + 1) for part in parts]
    return sum(tensors for tensors, _ in counts), sum(hidden for _, hidden in counts)


def json_hash(value: Any) -> str:
    """Return the SHA-256 hash of a JSON-ready value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
