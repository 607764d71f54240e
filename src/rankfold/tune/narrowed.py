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


class Narrowed:
    """The layers of a teacher that lost channels in the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        removed = _removed(student)
        layers = static_inventory(teacher) if removed else ()
        self._lost = {layer.name: (layer, removed[layer.name]) for layer in layers if layer.name in removed}

    def of(self, path: str) -> tuple[LayerInfo, Removed] | None:
        """Return a layer of the teacher and what the student's lost; None if that is nothing."""
        return self._lost.get(path)

    def output(self, path: str, output: Tensor) -> Tensor:
        """Return the channels of the output of the teacher's layer that the student's has."""
        layer, gone = self._lost.get(path, (None, {}))
        lost = gone.get("outputs")
        if layer is None or not lost:
            return output
        kept = [i for i in range(layer.out_channels) if i not in lost]
        return output.index_select(-1 - len(layer.kernel), torch.tensor(kept, device=output.device))


def _removed(student: nn.Module) -> Mapping[str, Removed]:
    try:
        return plan_of(student).narrowing.removed()
    except RankfoldError:  # not compressed
        return {}
