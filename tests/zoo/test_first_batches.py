"""The first samples of a loader, and the number of their batches."""

from __future__ import annotations

from operator import length_hint

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rankfold.zoo.loading import FirstBatches


@pytest.mark.parametrize(("limit", "batches"), [(1, 1), (4, 1), (5, 2), (10, 3), (99, 3)])
def test_the_number_of_batches_is_known_beforehand(limit: int, batches: int) -> None:
    loader = DataLoader(TensorDataset(torch.arange(10), torch.arange(10)), batch_size=4)
    first = FirstBatches(loader, limit)
    assert length_hint(first) == len(list(first)) == batches
    assert sum(len(y) for _, y in first) == min(limit, 10)


def test_without_a_batch_size_it_is_not_guessed() -> None:
    first = FirstBatches([(torch.ones(3), torch.ones(3))] * 2, 4)
    assert length_hint(first) == 0
    assert [len(x) for x, _ in first] == [3, 1]
