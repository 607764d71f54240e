"""Tiny networks and data for the tests of fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rankfold.inventory import static_inventory
from rankfold.records import Choice, Plan
from rankfold.surgery import apply_plan_
from rankfold.tune import FineTune, StepInfo, finetune


def digits(count: int = 40) -> tuple[Tensor, Tensor]:
    """Return vectors whose largest entry is their class."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(7))
    return x, x[:, :3].argmax(1)


@pytest.fixture
def dense() -> nn.Sequential:
    """Return a network with dropout and no normalization."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def compress() -> Callable[..., nn.Module]:
    """Return a function that factors layers of a copy by SVD."""

    def factored(model: nn.Module, **wanted: int) -> nn.Module:
        names = [layer.name for layer in static_inventory(model)]
        layers = {name: Choice(method="svd", ranks=(wanted[name],)) if name in wanted else Choice() for name in names}
        assert set(wanted) <= set(names)
        twin = copy.deepcopy(model)
        apply_plan_(twin, Plan(layers=layers))
        return twin

    return factored


@pytest.fixture
def loader() -> DataLoader[tuple[Tensor, ...]]:
    """Return 40 labeled samples in shuffled batches of 12, so that the last has 4."""
    return DataLoader(TensorDataset(*digits()), batch_size=12, shuffle=True)


@pytest.fixture
def unlabeled() -> list[Tensor]:
    """Return 40 samples in batches of 12."""
    return list(digits()[0].split(12))


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module], bool]:
    """Return a function that compares all tensors of two models bit by bit."""

    def equal(a: nn.Module, b: nn.Module) -> bool:
        left, right = a.state_dict(), b.state_dict()
        return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)

    return equal


@pytest.fixture
def resumes() -> Callable[..., None]:
    """Return a function that stops a run in its fourth step, resumes it, and compares the result bit by bit."""

    def check(model: nn.Module, config: FineTune, uninterrupted: nn.Module, **options: Any) -> None:
        def stop(info: StepInfo) -> None:
            if info.step == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(model, config, progress=stop, **options)
        again = finetune(model, config, **options)
        assert again.resumed_from == 3
        assert all(map(torch.equal, again.model.parameters(), uninterrupted.parameters()))

    return check


@pytest.fixture(autouse=True)
def _accelerate_state() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Fail a test after which Accelerate remembers a run's settings."""
    from accelerate.state import AcceleratorState

    yield
    assert not AcceleratorState._shared_state
