"""The inventory of a model without some of its channels, computed from shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from rankfold.records import Inventory, LayerInfo, ModuleCost, Narrowing, StoredTensor, narrowed_layer
from rankfold.records.dense import dense_cost
from rankfold.records.deploy import item_bytes
from rankfold.records.narrowing import CHANNEL_TENSORS, Removed


def narrowed_inventory(inventory: Inventory, narrowing: Narrowing) -> Inventory:
    """Return the inventory that `rankfold.inspect` returns for the narrowed model, at the model's own data types.

    Multiply-accumulates outside of layers are taken to stay the same. Channel groups that change them are not offered
    (`rankfold.pruning.find_groups` compares this inventory with that of a narrowed copy).

    Raises
    ------
    PlanMismatch
        If the narrowing does not fit a layer.
    """
    removed = narrowing.removed()
    layers = tuple(narrowed_layer(layer, removed.get(layer.name, {})) for layer in inventory)
    changed = {new.name: dense_cost(new) for new, old in zip(layers, inventory, strict=True) if new is not old}
    before = {name: tensor for module in inventory.modules for name, tensor in module.tensors.items()}
    after = dict[str, StoredTensor]()
    for layer in layers:
        after |= _layer_tensors(layer, before) if layer.name in changed else {}
    listed = {path for layer in inventory for path in layer.paths}
    for name, gone in removed.items():
        after |= {} if name in listed else _other_tensors(name, gone, before)
    modules = tuple(_narrowed_module(module, after) for module in inventory.modules)
    lost = Counter[str]()
    for name, tensor in after.items():
        lost[name.rpartition(".")[0]] += tensor.is_parameter * (_size(before[name]) - _size(tensor))
    others = tuple(replace(other, params=other.params - lost[other.name]) for other in inventory.others)
    costs = {**inventory.costs, **changed}
    return replace(inventory, layers=layers, others=others, costs=costs, modules=modules).within({""})


def _narrowed_module(module: ModuleCost, after: Mapping[str, StoredTensor]) -> ModuleCost:
    """Return what a module holds after some tensors, given by name, have shrunk."""
    stored, params, size = Counter(module.stored), module.params, module.weight_bytes
    for name, tensor in module.tensors.items():
        if name in after:
            fewer = _size(tensor) - _size(after[name])
            stored[tensor.dtype] -= fewer
            params -= tensor.is_parameter * fewer
            size -= fewer * item_bytes(tensor.dtype)
    tensors = {name: after.get(name, tensor) for name, tensor in module.tensors.items()}
    return replace(module, stored=dict(stored), params=params, weight_bytes=size, tensors=tensors)


def _size(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape)


def _layer_tensors(layer: LayerInfo, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a narrowed layer, and the biases of layers that are tied to it, by name."""
    weight = layer.weight_shape[::-1] if layer.input_first else layer.weight_shape
    shapes = {f"{layer.name}.weight": weight, f"{layer.name}.bias": (layer.out_channels,)}
    shapes |= {f"{tie}.bias": (layer.out_channels,) for tie in layer.ties}
    plain = not layer.attention
    return {name: replace(tensors[name], shape=shape) for name, shape in shapes.items() if name in tensors and plain}


def _other_tensors(name: str, gone: Removed, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors outside of layers that a module or parameter narrows, by name."""
    names = [f"{name}.{tensor}" for tensor in CHANNEL_TENSORS] if "channels" in gone else [name]
    narrowed: dict[str, StoredTensor] = {}
    for path in names:
        if path in tensors:
            shape = list(tensors[path].shape)
            for dim, ids in gone.items():
                shape[dim if isinstance(dim, int) else 0] -= len(ids)
            narrowed[path] = replace(tensors[path], shape=tuple(shape))
    return narrowed
