"""The state of a model that an artifact stores, and the check that it can be stored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from rankfold._state import extra_state, own_state
from rankfold.errors import ModelError
from rankfold.inventory.kinds import is_lazy
from rankfold.inventory.wrappers import check_whole

_DTYPES = frozenset(safetensors.torch._TYPES.values())  # depends on the version of safetensors
_RESERVED = "__metadata__"


def check_state(model: nn.Module) -> None:
    """Raise `ModelError` if an artifact cannot store all of a model's state.

    An artifact stores every parameter and persistent buffer, even if the model's ``state_dict()`` omits or renames
    them, and tensors returned by ``get_extra_state``. It cannot store some kinds of tensors, nor state that a
    customized ``state_dict()`` takes from elsewhere.
    """
    check_whole(model)
    own = own_state(model)
    extra = extra_state(model)
    for name, value in extra.items():
        if not isinstance(value, Tensor):
            raise ModelError(_no_tensor(name, value))
    for name, tensor in (own | extra).items():
        fault = _fault(name, tensor)
        if fault is not None:
            raise ModelError(f"{name!r} of the model {fault}")
    for name, value in _state_dict(model).items():
        if name in own or name in extra:
            continue
        if not isinstance(value, Tensor):
            raise ModelError(_no_tensor(name, value))
        if not any(_equal(value, tensor) for tensor in own.values()):
            raise ModelError(
                f"the state dict of the model contains {name!r}, which is neither a parameter or persistent buffer nor "
                "equal to one, so an artifact would lose it. Register it with register_buffer."
            )


def stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor of a model's state once, on the CPU, and its further names (aliases)."""
    check_state(model)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in (own_state(model) | extra_state(model)).items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        key += (tensor.is_conj(), tensor.is_neg())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()
    return tensors, aliases


def _no_tensor(name: str, value: object) -> str:
    return (
        f"the state of the model contains {name!r} of type {type(value).__name__}, which cannot be saved. "
        "Return a tensor from get_extra_state."
    )


def _fault(name: str, tensor: Tensor) -> str | None:
    """Return why a tensor cannot be stored, and what to do; None if it can."""
    if name == _RESERVED:
        return "has a name that the file format reserves. Rename it."
    if not name.isascii() and name != name.encode("utf-8", "replace").decode():
        return "has a name with half a surrogate pair, which is not valid text. Rename it."
    if is_lazy(tensor):
        return "belongs to a lazy module that is not initialized. Run the model once before compressing it."
    if type(tensor) not in (Tensor, nn.Parameter):
        return (
            f"is of type {type(tensor).__name__}, which cannot be stored. Replace it with a plain tensor of its values."
        )
    if tensor.is_meta:
        return "is on the meta device and has no values. Load the model's weights first."
    if tensor.is_nested:
        return "is a nested tensor, which cannot be stored. Store it padded, with the lengths in another buffer."
    if tensor.layout != torch.strided:
        return (
            f"has layout {tensor.layout}, which cannot be stored. Make it dense, keep its indices and values as "
            "buffers, or build it in __init__ and register it with persistent=False."
        )
    if tensor.dtype not in _DTYPES:
        return f"has data type {tensor.dtype}, which cannot be stored. Convert it, or set persistent=False."
    return None


def _state_dict(model: nn.Module) -> Mapping[str, Any]:
    """Return the state dict, or what the modules write into one if ``state_dict()`` cannot be called as usual."""
    # An overridden state_dict may have another signature, raise or return anything.
    with contextlib.suppress(Exception):
        state = model.state_dict()
        if isinstance(state, Mapping):
            return state
    state = dict[str, Any]()
    for path, module in model.named_modules():
        module._save_to_state_dict(state, f"{path}." if path else "", False)
    return state


def _equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.layout == other.layout
        and (one.data_ptr() == other.data_ptr() or torch.equal(one, other.to(one.device)))
    )
