"""TT-SVD against TensorLy, its bound, and planted trains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_train
from torch import Tensor

from rankfold.factor.tensor_train import TensorTrain


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contract(cores: list[Tensor]) -> Tensor:
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.einsum("b...i,bijk->b...jk", whole, core)
    return whole.squeeze(-1).squeeze(1)


def achieved(train: TensorTrain, ranks: tuple[int, ...]) -> float:
    return float((contract(train.cores(ranks)) - train.tensor).norm() / train.tensor.norm())


@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 3, 2), (5, 4, 3), (4, 9, 6), (5, 15, 6)])
def test_errors_are_tensorlys(ranks: tuple[int, ...]) -> None:
    tensor = random(1, 5, 3, 3, 6)
    theirs = tensor_train(tensor[0].numpy(), rank=[1, *ranks, 1])
    reference = np.linalg.norm(tensorly.tt_to_tensor(theirs) - tensor[0].numpy()) / float(tensor.norm())
    assert achieved(TensorTrain(tensor), ranks) == pytest.approx(reference, abs=1e-9)


def test_the_bound_holds_and_never_grows() -> None:
    train = TensorTrain(random(2, 4, 3, 3, 5))
    limits = (4, 12, 5)
    for ranks in itertools.product(*(range(1, limit + 1) for limit in limits)):
        bound = train.relative_error(ranks)
        assert achieved(train, ranks) <= bound + 1e-7
        for position, limit in enumerate(limits):
            if ranks[position] < limit:
                assert train.relative_error((*ranks[:position], ranks[position] + 1, *ranks[position + 1 :])) <= bound
    assert train.relative_error(limits) < 1e-7
    # Truncating at one bond only, the bound is the error.
    assert achieved(train, (2, 12, 5)) == pytest.approx(train.relative_error((2, 12, 5)), abs=1e-9)


def test_a_planted_train_is_recovered() -> None:
    cores = [random(2, 1, 6, 2), random(2, 2, 3, 4, seed=1), random(2, 4, 3, 3, seed=2), random(2, 3, 8, 1, seed=3)]
    train = TensorTrain(contract(cores))
    assert achieved(train, (2, 4, 3)) < 1e-10
    assert train.relative_error((2, 4, 3)) < 1e-6
    for smaller in ((1, 4, 3), (2, 3, 3), (2, 4, 2)):
        assert achieved(train, smaller) > 1e-2


def test_cores_are_orthonormal_but_for_the_last() -> None:
    cores = TensorTrain(random(2, 4, 3, 3, 5)).cores((3, 5, 4))
    for core in cores[:-1]:
        columns = core.flatten(1, 2)
        eye = torch.eye(columns.shape[-1], dtype=torch.float64).expand(2, -1, -1)
        torch.testing.assert_close(columns.mT @ columns, eye, rtol=0, atol=1e-10)


def test_ranks_that_cannot_be_filled_are_padded() -> None:
    """After the first bond is cut to 1, the second can have no more than 3."""
    train = TensorTrain(random(1, 4, 3, 3, 5))
    cores = train.cores((1, 9, 5))
    assert [tuple(c.shape[1:]) for c in cores] == [(1, 4, 1), (1, 3, 9), (9, 3, 5), (5, 5, 1)]
    assert achieved(train, (1, 9, 5)) == pytest.approx(achieved(train, (1, 3, 5)), abs=1e-12)


def test_a_zero_tensor_has_no_error() -> None:
    train = TensorTrain(torch.zeros(1, 4, 3, 5, dtype=torch.float64))
    assert train.relative_error((1, 1)) == 0
    assert not contract(train.cores((2, 2))).any()
