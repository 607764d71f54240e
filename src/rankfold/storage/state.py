"""What of a model an artefact stores, and what it cannot: found out before any work."""

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

# What safetensors writes depends on its version.
_DTYPES = frozenset(safetensors.torch._TYPES.values())
_RESERVED = "__metadata__"


def check_state(model: nn.Module) -> None:
    """Raise `ModelError` if an artefact could not hold all of a model's state.

    An artefact holds every parameter and persistent buffer, whatever the model's ``state_dict()`` leaves out or
    renames, and tensors that ``get_extra_state`` returns. What it could not hold is named: tensors of a form that is
    not stored, and state that a customised ``state_dict()`` takes from elsewhere.
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
                f"the state dict of the model holds {name!r}, which is neither a parameter nor a persistent buffer nor "
                "equal to one: an artefact would lose it. Register it with register_buffer."
            )


def stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor of a model's state once, on the CPU, and the names under which it appears again."""
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
        f"the state of the model holds {name!r}, a {type(value).__name__}, which cannot be saved. "
        "Let get_extra_state return a tensor."
    )


def _fault(name: str, tensor: Tensor) -> str | None:
    """Return why a tensor cannot be stored, and what to do; None if it can."""
    if name == _RESERVED:
        return "has a name that the file format reserves. Rename it."
    if not name.isascii() and name != name.encode("utf-8", "replace").decode():
        return "has a name with half a surrogate pair, which is not text. Rename it."
    if is_lazy(tensor):
        return "belongs to a lazy module that is not initialised. Run the model once before compressing it."
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}, which is not stored. Replace it by a plain tensor of its values."
    if tensor.is_meta:
        return "is on the meta device and has no values. Load the model's weights first."
    if tensor.is_nested:
        return "is a nested tensor, which is not stored. Keep it padded, with the lengths in another buffer."
    if tensor.layout != torch.strided:
        return (
            f"has layout {tensor.layout}, which is not stored. Make it dense, keep its indices and values as buffers, "
            "or build it in __init__ and register it with persistent=False."
        )
    if tensor.dtype not in _DTYPES:
        return f"has data type {tensor.dtype}, which is not stored. Convert it, or register it with persistent=False."
    return None


def _state_dict(model: nn.Module) -> Mapping[str, Any]:
    """Return the state dict; what its modules alone write into one where it cannot be called as usual."""
    # It may have another signature, raise or return anything: what the modules hold is stored regardless.
    with contextlib.suppress(Exception):
        state = model.state_dict()
        if isinstance(state, Mapping):
            return state
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        module._save_to_state_dict(found, f"{path}." if path else "", False)
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.layout == other.layout
        and (one.data_ptr() == other.data_ptr() or torch.equal(one, other.to(one.device)))
    )
