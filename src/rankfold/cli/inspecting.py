"""``rankfold inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

if TYPE_CHECKING:
    from rankfold.records import Cost, Inventory

EXAMPLE = "Example: rankfold inspect torchvision/resnet18"


@command
def inspect(
    model: o.Model,
    weights: o.Weights = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    keep_first_last: o.KeepFirstLast = False,
    input_size: o.InputSize = None,
    num_classes: o.Classes = None,
    data: o.Data = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """List a network's layers: what each costs, and whether it can be compressed or why not.

    The first line says what share of the network can be compressed. Weights are not needed.
    """
    import rankfold as rf
    from rankfold.cli._loading import check_name, open_example, open_model, open_test, pick_device
    from rankfold.cli._source import source_of
    from rankfold.reporting.terminal import print_record

    with session(as_json=as_json, quiet=quiet) as printer:
        source = source_of(model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, seed=seed)
        place = pick_device(device)
        check_name(source)
        example = open_example(source, open_test(source))
        inventory = rf.inspect(
            open_model(source, place), example, include=include or None, exclude=exclude or None,
            keep_first_last=keep_first_last,
        )  # fmt: skip
        if quiet:
            printer.result(inventory.summary())
        printer.show(lambda console: print_record(inventory, console))
        printer.document({"command": "inspect", "model": model, **_as_json(inventory)})


def _as_json(inventory: Inventory) -> dict[str, Any]:
    from rankfold.records import Cost

    params, macs = inventory.coverage
    return {
        "summary": inventory.summary(),
        "coverage": {"params": params, "macs": macs},
        "uncounted": list(inventory.uncounted),
        "example": inventory.example,
        "total": cost_as_json(inventory.total),
        "layers": [
            {
                "name": layer.name,
                "layer": layer.describe(),
                "compressible": layer.skip is None,
                "reason": layer.skip,
                "note": layer.note,
                "calls": sum(call.count for call in layer.calls),
                "aliases": list(layer.aliases),
                "ties": list(layer.ties),
                **cost_as_json(inventory.costs.get(layer.name, Cost())),
            }
            for layer in inventory
        ],
        "others": [
            {"name": m.name, "type": m.type_name, "params": m.params, "reason": m.reason} for m in inventory.others
        ],
    }


def cost_as_json(cost: Cost) -> dict[str, int]:
    """Return a cost as JSON-ready values."""
    return {"params": cost.params, "macs": cost.macs, "fm": cost.fm, "weight_bytes": cost.weight_bytes}
