"""The flash that a model takes at a deployment data type, whatever its own."""

from __future__ import annotations

from dataclasses import replace

from rankfold.records import Inventory
from rankfold.records.dense import dense_cost
from rankfold.records.deploy import check_deploy_dtype, outside_bytes


def stored_inventory(inventory: Inventory, deploy_dtype: str | None) -> Inventory:
    """Return an inventory whose bytes are those at a deployment data type.

    With int8 a weight of a layer takes one byte, the scale of each output channel four (float32) and a bias four
    (int32). What belongs to no layer (normalisation, embeddings, persistent buffers) takes the size of
    float32, float16 and bfloat16 and stays float32 with int8; integer buffers stay as they are.

    Parameters
    ----------
    inventory : Inventory
        What `inspect` found.
    deploy_dtype : str or None
        ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"``; None is the model's own, as the inventory is.

    Raises
    ------
    UnknownNameError
        If there is no such deployment data type.

    Examples
    --------
    >>> import torch
    >>> from rankfold.inventory import inspect
    >>> found = inspect(torch.nn.Linear(64, 10), torch.zeros(1, 64))
    >>> found.total.weight_bytes, stored_inventory(found, "int8").total.weight_bytes
    (2600, 720)
    """
    check_deploy_dtype(deploy_dtype)
    if deploy_dtype is None:
        return inventory
    costs = {layer.name: dense_cost(layer, deploy_dtype=deploy_dtype) for layer in inventory.layers}
    outside = sum(outside_bytes(count, dtype, deploy_dtype) for dtype, count in inventory.outside.items())
    total = sum(cost.weight_bytes for cost in costs.values()) + outside
    return replace(inventory, costs=costs, total=replace(inventory.total, weight_bytes=total))
