"""The state of a model: its parameters and persistent buffers under their own names, independent of its state dict.

Training repositories omit a frozen backbone from ``state_dict()``, rename keys, or load with ``strict=False``. The
functions here read and write the modules directly, because a model computes with what they contain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

EXTRA = "_extra_state"


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer, detached, under each of its names."""
    state: dict[str, Tensor] = {}
    for path, module in _modules(model, "", frozenset()):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                state[path + name] = tensor if nn.parameter.is_lazy(tensor) else tensor.detach()
    return state


def extra_state(model: nn.Module) -> dict[str, Any]:
    """Return the extra state of every module that overrides ``get_extra_state``, by the key that torch uses."""
    return {
        path + EXTRA: module.get_extra_state()
        for path, module in _modules(model, "", frozenset())
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def buffer_owners(model: nn.Module) -> dict[str, str]:
    """Return, for each persistent buffer outside of torch's modules, the class of the module that owns it.

    Such a module may register a buffer, or fill one that is None, only in its first forward pass.
    """
    return {
        path + name: type(module).__qualname__
        for path, module in _modules(model, "", frozenset())
        if not type(module).__module__.startswith("torch.")
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def register_late_buffers_(model: nn.Module, state: Mapping[str, Any], owners: Mapping[str, str]) -> None:
    """Register in a new instance the buffers that its modules register only in their first forward pass.

    `state` maps names to values; `owners` is the result of `buffer_owners` for the model that the state comes from.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    for path, module in list(_modules(model, "", frozenset())):
        for name in (n.removeprefix(path) for n in owners if n in state and n.rpartition(".")[0] == path[:-1]):
            if type(module).__qualname__ != owners[path + name] or getattr(module, name, None) is not None:
                continue
            if name in module._buffers or not hasattr(module, name):
                module.register_buffer(name, state[path + name].detach().to(device, copy=True))


def load_state_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the `own_state` and `extra_state` of a model of the same architecture, in place.

    A customized ``load_state_dict`` runs first, because it may derive more from the values; everything it skips,
    changes or rejects is then written directly. Values are converted to the model's data types and device.
    """
    # A customized load_state_dict may fail, for other names or overlapping memory, without harm. Torch's own derives
    # nothing, and its time grows with the square of the number of modules in one container.
    if any(map(_is_customized, model.modules())):
        with contextlib.suppress(Exception):
            model.load_state_dict(dict(state))
    with torch.no_grad():
        for path, module in _modules(model, "", frozenset()):
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and path + name in state:
                        table[name] = _written(tensor, state[path + name])
            if path + EXTRA in state and type(module).set_extra_state is not nn.Module.set_extra_state:
                module.set_extra_state(state[path + EXTRA])


def _is_customized(module: nn.Module) -> bool:
    """Return whether loading a state dict may do more to a module than copy values."""
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return True
    methods = (module.load_state_dict, module._load_from_state_dict)
    return not all(method.__module__.startswith(("torch.nn.modules.", "rankfold.")) for method in methods)


def _written(tensor: Tensor, value: Tensor) -> Any:
    """Write a value into a tensor; return the tensor, or a new one if its elements share memory."""
    value = value.detach().to(dtype=tensor.dtype, device=tensor.device)
    if any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        own = value.clone()
        return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    if not torch.equal(tensor, value):
        tensor.copy_(value)
    return tensor


def _modules(module: nn.Module, path: str, above: frozenset[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path, as the prefix of its names, without following cycles."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None and child not in above and child is not module:
            yield from _modules(child, f"{path}{name}.", above | {module})
