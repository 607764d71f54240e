"""What each module of a model holds and computes, from which the costs of parts are added up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.inventory.kinds import ROLES, dtype_name, is_attention, is_lazy
from rankfold.inventory.sharing import tensor_key
from rankfold.inventory.static import Entry, Modules, is_hidden
from rankfold.records import Cost, ModuleCost, StoredTensor

_PACKED = ("in_proj_weight", "in_proj_bias")
"""Tensors of an attention in which the first three `ROLES` have equal parts."""


class Running:
    """The modules that run, the innermost one last."""

    def __init__(self) -> None:
        self._stack: list[nn.Module] = []

    def innermost(self) -> nn.Module | None:
        """Return the module that runs; None outside of the model."""
        return self._stack[-1] if self._stack else None

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Follow the calls of some modules inside the block."""
        with ExitStack() as stack:
            for module in modules:
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks: it counts with the module around it
                    continue
                for handle in (
                    module.register_forward_pre_hook(self._enter, prepend=True),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            yield
        self._stack.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        self._stack.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        while self._stack and self._stack.pop() is not module:
            pass  # calls that the model ended by an exception, which it caught


@dataclass(slots=True)
class _Item:
    tensor: Tensor
    elements: int
    is_parameter: bool
    name: str
    paths: dict[str, None] = field(default_factory=dict)


def module_costs(
    modules: Modules, entries: Sequence[Entry], costs: Mapping[str, Cost], macs: Mapping[Hashable, int]
) -> tuple[ModuleCost, ...]:
    """Return what the modules hold, every tensor once, and what they compute outside of layers.

    Parameters
    ----------
    modules : sequence of (Module, tuple of str)
        Every module with its paths (`static.walk`).
    entries : sequence of Entry
        The layers.
    costs : mapping of str to Cost
        Dense costs of the layers, by name.
    macs : mapping
        Multiply-accumulates by the innermost module that ran.
    """
    stored: dict[Hashable, _Item] = {}
    for module, paths in modules:
        for key, item, names in _items(module, paths):
            held = stored.setdefault(key, item)
            held.paths |= dict.fromkeys(names)
            held.is_parameter |= item.is_parameter  # a buffer may share the memory of a parameter
    result: dict[tuple[str, ...], ModuleCost] = {}
    grouped: dict[tuple[str, ...], list[_Item]] = defaultdict(list)
    for item in stored.values():
        grouped[tuple(item.paths)].append(item)
    outside = _outside(entries, costs, macs)
    by_paths = {paths: outside.get(module, 0) for module, paths in modules}
    by_paths[("",)] = by_paths.get(("",), 0) + outside.get(None, 0)
    for paths in (*by_paths, *(paths for paths in grouped if paths not in by_paths)):
        items, own = grouped.get(paths, []), by_paths.get(paths, 0)
        if items or own:
            result[paths] = _module_cost(paths, items, own)
    return tuple(result.values())


def _module_cost(paths: tuple[str, ...], items: Iterable[_Item], macs: int) -> ModuleCost:
    count: Counter[str] = Counter()
    params = size = 0
    tensors: dict[str, StoredTensor] = {}
    for item in items:
        dtype = dtype_name(item.tensor)
        if item.elements == item.tensor.numel() and not item.tensor.is_nested:  # a nested tensor has no one shape
            shape = tuple(item.tensor.shape)
            tensors[item.name] = StoredTensor(shape=shape, dtype=dtype, is_parameter=item.is_parameter)
        count[dtype] += item.elements
        params += item.elements if item.is_parameter else 0
        size += item.elements * item.tensor.element_size()
    return ModuleCost(paths=paths, params=params, stored=dict(count), weight_bytes=size, macs=macs, tensors=tensors)


def _outside(entries: Sequence[Entry], costs: Mapping[str, Cost], macs: Mapping[Hashable, int]) -> dict[Hashable, int]:
    """Return the multiply-accumulates by module without those of the layers."""
    left = dict(macs)
    for entry in entries:
        open_macs = costs[entry.info.name].macs
        for module in dict.fromkeys(member.module for member in entry.members):
            taken = min(left.get(module, 0), open_macs)
            left[module] = left.get(module, 0) - taken
            open_macs -= taken
    return left


def _items(module: nn.Module, paths: tuple[str, ...]) -> Iterator[tuple[Hashable, _Item, tuple[str, ...]]]:
    """Yield the parameters and persistent buffers of a module and its hidden submodules, with keys and paths."""
    attention = is_attention(module)
    for name, tensor, is_parameter in _tensors(module):
        packed = ROLES[:3] if attention and name in _PACKED else ()
        own = name.removesuffix("_weight") if attention else ""
        for role in packed or (own if own in ROLES else None,):
            names = paths if role is None else _inside(paths, role)
            elements = tensor.numel() // max(len(packed), 1)
            item = _Item(tensor, elements, is_parameter, _inside(paths, name)[0])
            yield (tensor_key(tensor), role if packed else None), item, names
    for name, child in module._modules.items():
        if child is not None and is_hidden(module, name):
            names = _inside(paths, name) if name in ROLES else paths
            for inner_path, inner in child.named_modules(prefix=_inside(paths, name)[0]):
                for own, tensor, is_parameter in _tensors(inner):
                    item = _Item(tensor, tensor.numel(), is_parameter, f"{inner_path}.{own}")
                    yield (tensor_key(tensor), None), item, names


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the stored tensors of a module alone, and whether each is a parameter."""
    hidden = getattr(module, "_non_persistent_buffers_set", ())
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if not is_lazy(parameter):
            yield name, parameter, True
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in hidden and not is_lazy(buffer):
            yield name, buffer, False


def _inside(paths: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" if path else name for path in paths)
