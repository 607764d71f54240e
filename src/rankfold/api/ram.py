"""Peak activation memory of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from rankfold.cost import activation_profile
from rankfold.inventory import export_graph


def peak_ram(model: nn.Module, example_input: Any, deploy_dtype: str | None) -> int:
    """Return the peak activation memory of a model's exported graph, in bytes.

    Raises
    ------
    ModelError
        If the model cannot be exported, or the peak depends on the data.
    """
    graph = export_graph(model, example_input)
    return activation_profile(graph.graph, graph.constants, graph.users, (), deploy_dtype=deploy_dtype).peak
