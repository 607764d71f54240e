"""Truncated SVD and pivoted QR against NumPy, SciPy and theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from rankfold.factor import matrix as matrix_module
from rankfold.factor.linalg import Metric
from rankfold.factor.matrix import PlainQRProjection, Projection, QRProjection, SVDProjection

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 9), (9, 1), (40, 3), (3, 40)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(n: int, *, batch: int = 1, seed: int = 1) -> tuple[Tensor, Metric]:
    """Return a full second moment with energies over three decades, and its metric."""
    basis = torch.linalg.qr(random(batch, n, n, seed=seed)).Q
    moment = (basis * torch.logspace(0, -3, n, dtype=torch.float64)) @ basis.mT
    return moment, Metric.of(moment)


def achieved(projection: Projection, matrix: Tensor, rank: int, root: Tensor | None = None) -> float:
    left, right = projection.factors(rank)
    assert left.shape == (*matrix.shape[:2], rank)
    assert right.shape == (matrix.shape[0], rank, matrix.shape[2])
    difference, whole = left @ right - matrix, matrix
    if root is not None:
        difference, whole = difference @ root, whole @ root
    return float(difference.norm() / whole.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_errors_are_eckart_youngs(shape: tuple[int, int]) -> None:
    matrix = random(1, *shape)
    values = np.linalg.svd(matrix[0].numpy(), compute_uv=False)
    projection = SVDProjection(matrix)
    for rank in range(1, min(shape) + 1):
        best = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert projection.relative_error(rank) == pytest.approx(best, abs=1e-7)
        assert achieved(projection, matrix, rank) == pytest.approx(best, abs=1e-12)
    assert achieved(projection, matrix, max(1, min(shape) - 1)) > 1e-3 or min(shape) == 1  # the comparison can fail


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (20, 4)])
def test_svd_in_a_metric_is_the_whitened_svd(shape: tuple[int, int]) -> None:
    matrix = random(1, *shape)
    _, metric = metric_of(shape[1])
    values = np.linalg.svd((matrix @ metric.root)[0].numpy(), compute_uv=False)
    projection = SVDProjection(matrix, matrix @ metric.root)
    plain = SVDProjection(matrix)
    for rank in range(1, min(shape)):
        best = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert achieved(projection, matrix, rank, metric.root) == pytest.approx(best, abs=1e-9)
        assert projection.relative_error(rank) == pytest.approx(best, abs=1e-7)
        assert achieved(plain, matrix, rank, metric.root) > best * 1.01  # blind to the data it is worse


def test_no_other_product_of_the_rank_is_better_on_the_data() -> None:
    matrix = random(1, 8, 6)
    moment, metric = metric_of(6)
    rank = 3
    left, right = SVDProjection(matrix, matrix @ metric.root).factors(rank)

    def energy(product: Tensor) -> float:
        return float(torch.einsum("bij,bjk,bik->", product - matrix, moment, product - matrix))

    least = energy(left @ right)
    for seed in range(300):
        scale = 10.0 ** -(seed % 6)
        other = (left + scale * random(1, 8, rank, seed=seed)) @ (right + scale * random(1, rank, 6, seed=seed + 999))
        assert energy(other) >= least * (1 - 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_qr_is_scipys(shape: tuple[int, int]) -> None:
    matrix = random(1, *shape)
    decomposition: Any = scipy.linalg.qr(matrix[0].numpy(), mode="economic", pivoting=True)
    r = decomposition[1]
    projection = QRProjection(matrix)
    for rank in range(1, min(shape) + 1):
        left_out = np.linalg.norm(r[rank:]) / np.linalg.norm(r)
        assert projection.relative_error(rank) == pytest.approx(left_out, abs=1e-7)
        assert achieved(projection, matrix, rank) == pytest.approx(left_out, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_qr_is_numpys(shape: tuple[int, int]) -> None:
    matrix = random(1, *shape)
    r = np.linalg.qr(matrix[0].numpy())[1]
    projection = PlainQRProjection(matrix)
    for rank in range(1, min(shape) + 1):
        left_out = np.linalg.norm(r[rank:]) / np.linalg.norm(r)
        assert projection.relative_error(rank) == pytest.approx(left_out, abs=1e-7)
        assert achieved(projection, matrix, rank) == pytest.approx(left_out, abs=1e-9)
    if min(shape) > 1:  # first columns that matter least
        graded = matrix * torch.logspace(-2, 0, shape[1], dtype=torch.float64)
        assert PlainQRProjection(graded).relative_error(1) > QRProjection(graded).relative_error(1) + 1e-3


def test_qr_is_never_better_than_svd() -> None:
    for seed in range(20):
        matrix = random(2, 9, 7, seed=seed)
        by_svd, by_qr = SVDProjection(matrix), QRProjection(matrix)
        for rank in range(1, 8):
            assert by_qr.relative_error(rank) >= by_svd.relative_error(rank) - 1e-9
    matrix = random(2, 9, 7)
    assert QRProjection(matrix).relative_error(3) > SVDProjection(matrix).relative_error(3) * 1.001


@pytest.mark.parametrize("project", [SVDProjection, QRProjection, PlainQRProjection])
def test_planted_rank_is_found(project: object) -> None:
    assert callable(project)
    matrix = random(3, 10, 4) @ random(3, 4, 8, seed=5)
    projection = project(matrix)
    assert projection.relative_error(4) < 1e-7
    assert projection.relative_error(3) > 1e-2
    assert achieved(projection, matrix, 4) < 1e-10


@pytest.mark.parametrize("project", [SVDProjection, QRProjection, PlainQRProjection])
def test_a_batch_is_its_members(project: object) -> None:
    assert callable(project)
    matrix = random(4, 6, 9)
    whole = project(matrix)
    for rank in (1, 3, 6):
        left, right = whole.factors(rank)
        squares = 0.0
        for member in range(4):
            one = project(matrix[member : member + 1])
            l1, r1 = one.factors(rank)
            torch.testing.assert_close((l1 @ r1)[0], (left @ right)[member], rtol=0, atol=1e-10)
            squares += one.relative_error(rank) ** 2 * float(matrix[member].square().sum())
        total = float(matrix.square().sum())
        assert whole.relative_error(rank) == pytest.approx((squares / total) ** 0.5, abs=1e-9)


def test_factors_are_balanced() -> None:
    matrix = random(1, 12, 10) @ torch.logspace(0, -6, 10, dtype=torch.float64).diag()
    left, right = SVDProjection(matrix).factors(6)
    values = np.linalg.svd(matrix[0].numpy(), compute_uv=False)[:6]
    for factor in (left, right):
        shares = np.linalg.svd(factor[0].numpy(), compute_uv=False)
        np.testing.assert_allclose(shares, np.sqrt(values), rtol=1e-6)


@pytest.mark.parametrize("project", [SVDProjection, QRProjection, PlainQRProjection])
def test_a_zero_matrix_has_no_error(project: object) -> None:
    assert callable(project)
    matrix = torch.zeros(2, 5, 4, dtype=torch.float64)
    projection = project(matrix)
    assert [projection.relative_error(r) for r in range(1, 5)] == [0.0] * 4
    left, right = projection.factors(2)
    assert left.isfinite().all()
    assert right.isfinite().all()
    assert not (left @ right).any()


@pytest.mark.parametrize("project", [SVDProjection, QRProjection, PlainQRProjection])
def test_a_zero_matrix_in_a_batch_does_not_spoil_the_factors(project: Any) -> None:
    matrix = torch.stack([random(6, 5), torch.zeros(6, 5, dtype=torch.float64), random(6, 1) @ random(1, 5)])
    for rank in range(1, 6):
        left, right = project(matrix).factors(rank)
        assert bool((left @ right).isfinite().all())
        torch.testing.assert_close((left @ right)[1:], matrix[1:], atol=1e-10, rtol=0)


def test_pivots_below_the_rounding_of_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many columns may be below the rounding of the whole while together they still count."""
    monkeypatch.setattr(matrix_module, "SINGLE_ENOUGH", 1e-4)  # by its own value it takes 8,000 columns
    strong, weak = random(40, 4) @ random(4, 200, seed=1), random(40, 200, seed=2)
    matrix = (strong / strong.norm() + 3e-3 * weak / weak.norm()).float()[None]
    projection = QRProjection(matrix)
    left, right = projection.factors(8)
    assert projection._choleskys(torch.float32)[0].left_out(8) == 0  # the trap is set
    error = float((matrix.double() - left.double() @ right.double()).norm() / matrix.double().norm())
    assert error == pytest.approx(projection.relative_error(8), rel=1e-2)
