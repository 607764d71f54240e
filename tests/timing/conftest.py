"""A network, and a runtime whose times are computed: no test of the logic depends on a real clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from rankfold.testing.clockwork import Clockwork, clockwork


@pytest.fixture
def clock() -> Iterator[Clockwork]:
    """The runtime ``clockwork``, registered for one test."""
    with clockwork() as settings:
        yield settings


@pytest.fixture
def net() -> nn.Module:
    """Two pairs of equal convolutions, and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def x() -> torch.Tensor:
    """An input of `net`."""
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
