"""``rankfold inspect``."""

from __future__ import annotations

from typing import Any

import rankfold as rf
from rankfold._options import Flag
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.records import Cost, Inventory
from rankfold.reporting.terminal import print_record


@command(
    "rankfold inspect torchvision/resnet18",
    "model", "weights", "include", "exclude", "keep_first_last", "input_size", "num_classes", "data", "device", "seed",
    part=Flag(
        kind=str | None, metavar="PATTERN", help="Shell pattern of modules, such as 'encoder.*': list these only."
    ),
)  # fmt: skip
def inspect(given: Given, out: Output) -> None:
    """List a network's layers: the cost of each, and whether it can be compressed or why not.

    The first line is the share of the network that can be compressed. Weights are not needed.
    """
    work = open_work(given_source(given, given.model), given, tests=False)
    inventory = rf.inspect(
        work.dense, work.example, include=given.include or None, exclude=given.exclude or None,
        keep_first_last=given.keep_first_last,
    )  # fmt: skip
    if given.part is not None:
        inventory = inventory.part(given.part)
    if given.quiet:
        out.result(inventory.summary())
    out.show(lambda console: print_record(inventory, console))
    out.document({"command": "inspect", "model": given.model, **_as_json(inventory)})


def _as_json(inventory: Inventory) -> dict[str, Any]:
    params, macs = inventory.coverage
    return {
        "summary": inventory.summary(),
        "coverage": {"params": params, "macs": macs},
        "uncounted": list(inventory.uncounted),
        "example": inventory.example,
        "total": _cost(inventory.total),
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
                **_cost(inventory.costs.get(layer.name, Cost())),
            }
            for layer in inventory
        ],
        "others": [
            {"name": m.name, "type": m.type_name, "params": m.params, "reason": m.reason} for m in inventory.others
        ],
    }


def _cost(cost: Cost) -> dict[str, int]:
    return {"params": cost.params, "macs": cost.macs, "fm": cost.fm, "weight_bytes": cost.weight_bytes}
