"""The flash that a model takes at a storage data type, whatever its own."""

from __future__ import annotations

from dataclasses import replace

from rankfold.records import Inventory
from rankfold.records.dense import dense_cost
from rankfold.records.storage import check_storage, outside_bytes


def stored_inventory(inventory: Inventory, storage: str | None) -> Inventory:
    """Return an inventory whose bytes are those at a storage data type.

    With int8 a weight of a layer takes one byte, the scale of each output channel four (float32) and a bias four
    (int32). What belongs to no layer (normalisation, embeddings, persistent buffers) takes the storage's size in
    float32, float16 and bfloat16 and stays float32 with int8; integer buffers stay as they are.

    Parameters
    ----------
    inventory : Inventory
        What `inspect` found.
    storage : str or None
        ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"``; None is the model's own, as the inventory is.

    Raises
    ------
    UnknownNameError
        If there is no such storage data type.

    Examples
    --------
    >>> import torch
    >>> from rankfold.inventory import inspect
    >>> found = inspect(torch.nn.Linear(64, 10), torch.zeros(1, 64))
    >>> found.total.weight_bytes, stored_inventory(found, "int8").total.weight_bytes
    (2600, 720)
    """
    check_storage(storage)
    if storage is None:
        return inventory
    costs = {layer.name: dense_cost(layer, storage=storage) for layer in inventory.layers}
    outside = sum(outside_bytes(count, dtype, storage) for dtype, count in inventory.outside.items())
    total = sum(cost.weight_bytes for cost in costs.values()) + outside
    return replace(inventory, costs=costs, total=replace(inventory.total, weight_bytes=total))
