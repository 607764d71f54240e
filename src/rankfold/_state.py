"""The state of a model: its parameters and persistent buffers under their own names, whatever its state dict says.

Training repositories leave the frozen backbone out of ``state_dict()``, rename keys, or load with ``strict=False``.
What a model computes with is in its modules, and that is what is read and written here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

EXTRA = "_extra_state"


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer, detached, under every name that it has."""
    found: dict[str, Tensor] = {}
    for path, module in _modules(model, "", frozenset()):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                found[path + name] = tensor if nn.parameter.is_lazy(tensor) else tensor.detach()
    return found


def extra_state(model: nn.Module) -> dict[str, Any]:
    """Return what the modules with a ``get_extra_state`` of their own keep beyond tensors, by the name of torch."""
    return {
        path + EXTRA: module.get_extra_state()
        for path, module in _modules(model, "", frozenset())
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def buffer_owners(model: nn.Module) -> dict[str, str]:
    """Return the class of the module that holds it for each persistent buffer, where that is no class of torch's.

    Such a module may register a buffer, or fill one that is None, in its first forward pass; a new instance has not.
    """
    return {
        path + name: type(module).__qualname__
        for path, module in _modules(model, "", frozenset())
        if not type(module).__module__.startswith("torch.")
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def register_late_buffers_(model: nn.Module, state: Mapping[str, Any], owners: Mapping[str, str]) -> None:
    """Give a model the buffers of a state that its modules register in their first forward pass, in place.

    Parameters
    ----------
    model : Module
        A new instance.
    state : mapping
        Values by name.
    owners : mapping
        As `buffer_owners` gives them for the model that the state is of.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    for path, module in list(_modules(model, "", frozenset())):
        for name in (n.removeprefix(path) for n in owners if n in state and n.rpartition(".")[0] == path[:-1]):
            if type(module).__qualname__ != owners[path + name] or getattr(module, name, None) is not None:
                continue
            if name in module._buffers or not hasattr(module, name):
                module.register_buffer(name, state[path + name].detach().to(device, copy=True))


def load_state_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model the values of `own_state` and `extra_state` of one like it, in place.

    The model's own ``load_state_dict`` runs first, as it may derive more from the values; whatever it skips, changes
    or refuses is then written directly. Values are converted to the data type and device that the model has.
    """
    # It may expect other names, or refuse memory that overlaps: then nothing is derived, and nothing is lost. Torch's
    # own, which takes time that grows with the square of the number of modules in one container, derives nothing.
    if any(map(_loads_by_itself, model.modules())):
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


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether loading a state dict may do more to a module than to copy values."""
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return True
    methods = (module.load_state_dict, module._load_from_state_dict)
    return not all(method.__module__.startswith(("torch.nn.modules.", "rankfold.")) for method in methods)


def _written(tensor: Tensor, value: Tensor) -> Any:
    """Write a value into a tensor; return it, or a new one where its elements share memory."""
    value = value.detach().to(dtype=tensor.dtype, device=tensor.device)
    if any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        own = value.clone()
        return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    if not torch.equal(tensor, value):
        tensor.copy_(value)
    return tensor


def _modules(module: nn.Module, path: str, above: frozenset[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path, with the path as the prefix of its names; circles are not followed."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None and child not in above and child is not module:
            yield from _modules(child, f"{path}{name}.", above | {module})
