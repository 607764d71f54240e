"""Single precision where it is enough, double where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankfold.factor import matrix as matrix_module
from rankfold.factor import tensor_train as train_module
from rankfold.factor import tucker as tucker_module
from rankfold.factor.cholesky import PivotedCholesky
from rankfold.factor.matrix import QRProjection, SVDProjection
from rankfold.factor.tensor_train import TensorTrain
from rankfold.factor.tucker import Tucker2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Kernel = Callable[[Tensor, int], tuple[Tensor, float]]


def by_matrix(project: Callable[[Tensor], matrix_module.Projection], *, tall: bool = False) -> Kernel:
    def run(weight: Tensor, rank: int) -> tuple[Tensor, float]:
        matrix = weight.flatten(2)
        projection = project(matrix.mT if tall else matrix)
        left, right = projection.factors(rank)
        product = left.double() @ right.double()
        return (product.mT if tall else product).reshape(weight.shape), projection.relative_error(rank)

    return run


def by_tucker(weight: Tensor, rank: int) -> tuple[Tensor, float]:
    tucker = Tucker2(weight)
    out, core, inn = (f.double() for f in tucker.hooi(rank, rank, iterations=5, tolerance=1e-4))
    return torch.einsum("goa,gabk,gbi->goik", out, core, inn), tucker.relative_error(rank, rank)


def by_train(weight: Tensor, rank: int) -> tuple[Tensor, float]:
    train = TensorTrain(weight)
    whole, *cores = (core.double() for core in train.cores((rank, rank)))
    for core in cores:
        whole = torch.einsum("b...i,bijk->b...jk", whole, core)
    return whole.squeeze(-1).squeeze(1), train.relative_error((rank, rank))


KERNELS = {
    "svd": by_matrix(SVDProjection),
    "svd of a tall matrix": by_matrix(SVDProjection, tall=True),
    "qr": by_matrix(QRProjection),
    "tucker": by_tucker,
    "tt": by_train,
}


def graded(rank: int, *, smallest: float) -> Tensor:
    """Return a float32 weight ``(1, 40, 24, 4)`` of this channel rank, singular values from 1 to `smallest`."""
    left = torch.linalg.qr(random(1, 40, rank)).Q
    right = torch.linalg.qr(random(1, 24 * 4, rank, seed=1)).Q
    channels = torch.linalg.qr(random(1, 24, rank, seed=2)).Q
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), rank, dtype=torch.float64)
    whole = ((left * values) @ right.mT).reshape(1, 40, 24, 4)
    return torch.einsum("goik,gia,gja->gojk", whole, channels, channels).float()


def lost(kernel: Kernel, weight: Tensor, rank: int) -> float:
    approximation, _ = kernel(weight, rank)
    exact = weight.double()
    return float((approximation - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", KERNELS)
def test_small_errors_are_found_in_double(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Singular values down to 1e-5 of the largest: their squares are lost in a single-precision Gram matrix."""
    weight = graded(8, smallest=1e-5)
    ours = [lost(KERNELS[name], weight, rank) for rank in (6, 8)]
    best = [lost(KERNELS[name], weight.double(), rank) for rank in (6, 8)]
    assert ours == pytest.approx(best, rel=1e-3, abs=3e-7)
    # What would be without the rule.
    monkeypatch.setattr(matrix_module, "SINGLE_ENOUGH", 0.0)
    monkeypatch.setattr(PivotedCholesky, "left_out", lambda *_: 1.0)
    for module in (train_module, tucker_module):
        monkeypatch.setattr(module, "wide_dtype", lambda _: torch.float32)
    single = [lost(KERNELS[name], weight, rank) for rank in (6, 8)]
    assert any(not s <= 1.5 * o + 1e-6 for s, o in zip(single, ours, strict=True))  # worse, or not even a number


@pytest.mark.parametrize("name", KERNELS)
def test_large_errors_are_found_in_single_and_are_as_good(name: str) -> None:
    weight = random(1, 40, 24, 4).float()
    for rank in (3, 10, 20):
        single, double = (lost(KERNELS[name], w, rank) for w in (weight, weight.double()))
        assert single > 0.03
        assert single == pytest.approx(double, abs=2e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_predictions_do_not_depend_on_the_precision_of_the_weight(name: str) -> None:
    weight = graded(8, smallest=1e-4)
    for rank in (2, 5, 7, 8):
        single, double = (KERNELS[name](w, rank)[1] for w in (weight, weight.double()))
        assert single == pytest.approx(double, rel=1e-9, abs=1e-9)
        assert single < 1


def test_factors_keep_the_precision_that_was_enough() -> None:
    weight = random(1, 40, 24, 4).float()
    assert {f.dtype for f in SVDProjection(weight.flatten(2)).factors(5)} == {torch.float32}
    assert {f.dtype for f in SVDProjection(graded(8, smallest=1e-5).flatten(2)).factors(8)} == {torch.float64}
    assert {f.dtype for f in Tucker2(weight).hooi(4, 4, iterations=3, tolerance=1e-4)} == {torch.float32}
    assert {f.dtype for f in Tucker2(weight.double()).hooi(4, 4, iterations=3, tolerance=1e-4)} == {torch.float64}
