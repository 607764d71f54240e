"""What a teacher has and a student lost: removed channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rankfold.errors import RankfoldError
from rankfold.inventory import static_inventory
from rankfold.records import LayerInfo
from rankfold.records.narrowing import Removed
from rankfold.surgery import plan_of
from rankfold.surgery.apply import replaced_layers


class Narrowed:
    """The layers of a teacher that lost channels in the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        removed = _removed(student)
        ours = replaced_layers(student) if removed else {}
        theirs = [layer for layer in static_inventory(teacher) if layer.name in removed] if removed else []
        self._lost = {
            layer.name: (layer, removed[layer.name])
            for layer in theirs  # a teacher may have lost the channels, too
            if layer.name in ours and _is_left(ours[layer.name], layer, removed[layer.name])
        }
        self._kept = {
            name: torch.tensor([i for i in range(layer.out_channels) if i not in gone["outputs"]])
            for name, (layer, gone) in self._lost.items()
            if gone.get("outputs")
        }

    def of(self, path: str) -> tuple[LayerInfo, Removed] | None:
        """Return a layer of the teacher and what the student's lost; None if that is nothing."""
        return self._lost.get(path)

    def output(self, path: str, output: Tensor) -> Tensor:
        """Return the channels of the output of the teacher's layer that the student's has."""
        if path not in self._kept:
            return output
        kept = self._kept[path] = self._kept[path].to(output.device)
        return output.index_select(-1 - len(self._lost[path][0].kernel), kept)


def _is_left(ours: LayerInfo, theirs: LayerInfo, removed: Removed) -> bool:
    """Return whether the student's layer is what a removal leaves of the teacher's."""
    inputs, outputs = (len(removed.get(side, ())) for side in ("inputs", "outputs"))
    return (theirs.in_channels - inputs, theirs.out_channels - outputs) == (ours.in_channels, ours.out_channels)


def _removed(student: nn.Module) -> Mapping[str, Removed]:
    try:
        return plan_of(student).narrowing.removed()
    except RankfoldError:  # not compressed
        return {}
