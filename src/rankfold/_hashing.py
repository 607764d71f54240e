"""Names for contents: two tensors, models or batches have one hash exactly if they are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._state import extra_state, own_state


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, data types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        for tensor in _parts(tensors[name].detach().cpu()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and persistent buffers."""
    extra = {name: value for name, value in extra_state(model).items() if isinstance(value, Tensor)}
    own = {name: tensor for name, tensor in own_state(model).items() if not nn.parameter.is_lazy(tensor)}
    return tensor_hash(own | extra)


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return dense tensors that make up a tensor: itself, or what a sparse, nested or quantised one consists of."""
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


def json_hash(value: Any) -> str:
    """Return the SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
