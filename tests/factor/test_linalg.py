"""Metrics, tails and balanced products."""

from __future__ import annotations

import itertools

import pytest
import torch

from rankfold.factor.linalg import (
    FEW_COLUMNS,
    Metric,
    balanced_columns,
    balanced_product,
    eigh_descending,
    filtered,
    gram,
    identity,
    leading_left,
    orthonormal,
    pad_last,
    tails,
    unfold,
    unwanted,
    wide_dtype,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_metric_is_the_root_of_its_moment_and_its_inverse() -> None:
    moment = gram(random(3, 6, 20)) / 20
    metric = Metric.of(moment)
    torch.testing.assert_close(metric.root @ metric.root, moment, rtol=0, atol=1e-12)
    eye = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    torch.testing.assert_close(metric.root @ metric.inverse, eye, rtol=0, atol=1e-10)
    assert not torch.allclose(metric.root @ metric.root @ metric.root, moment, atol=1e-2)


@pytest.mark.parametrize("data", [random(1, 6, 2), torch.zeros(1, 6, 4, dtype=torch.float64)])
def test_a_metric_of_a_singular_moment_can_be_inverted(data: torch.Tensor) -> None:
    moment = gram(data)
    metric = Metric.of(moment)
    eye = torch.eye(6, dtype=torch.float64)[None]
    torch.testing.assert_close(metric.root @ metric.inverse, eye, rtol=0, atol=1e-9)
    if data.any():  # what the data does see is hardly touched
        slack = 2e-6 * float(moment.diagonal(dim1=-2, dim2=-1).mean())
        torch.testing.assert_close(metric.root @ metric.root, moment, rtol=0, atol=slack)
        values = torch.linalg.eigvalsh(metric.root)
        assert float(values.max() / values.min()) < 1e4


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_metric_scales_with_the_data(scale: float) -> None:
    moment = gram(random(1, 5, 9))
    torch.testing.assert_close(Metric.of(moment * scale**2).root, Metric.of(moment).root * scale, rtol=1e-9, atol=0)


def test_tails_add_up_from_the_small_end() -> None:
    left = tails(torch.tensor([4.0, 1e-20, 0.0], dtype=torch.float64))
    assert left.tolist() == [4.0, 1e-20, 0.0, 0.0]
    many = tails(random(50).square().sort(descending=True).values)
    assert bool((many[1:] <= many[:-1]).all())
    assert many[-1] == 0


def test_a_balanced_product_is_the_same_product() -> None:
    left = torch.linalg.qr(random(2, 9, 4)).Q
    right = torch.logspace(0, -8, 4, dtype=torch.float64).diag() @ torch.linalg.qr(random(2, 7, 4, seed=1)).Q.mT
    a, b = balanced_product(left, right)
    torch.testing.assert_close(a @ b, left @ right, rtol=0, atol=1e-12)
    roots = torch.logspace(0, -4, 4, dtype=torch.float64)
    for factor in (a, b):
        values = torch.linalg.svdvals(factor)[:, :3]
        torch.testing.assert_close(values, roots[:3].expand(2, 3), rtol=1e-3, atol=0)
    assert float(torch.linalg.cond(right).max()) > 1e7
    assert float(torch.linalg.cond(b).max()) < 2e4


def test_eigenvalues_come_largest_first_and_are_not_negative() -> None:
    matrix = gram(random(2, 6, 3))
    values, vectors = eigh_descending(matrix)
    assert bool((values[:, :-1] >= values[:, 1:]).all())
    assert bool((values >= 0).all())
    torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, matrix, rtol=0, atol=1e-10)


def test_eigenvectors_are_found_if_the_first_algorithm_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gram(random(2, 6, 9, seed=0))
    expected, _ = eigh_descending(matrix)

    def failing(_: torch.Tensor) -> None:
        raise torch._C._LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, vectors = eigh_descending(matrix)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(vectors @ (values.unsqueeze(-1) * vectors.mT), matrix)


def test_unfold_and_pad() -> None:
    tensor = random(2, 3, 4, 5)
    for mode, size in enumerate((3, 4, 5)):
        unfolded = unfold(tensor, mode)
        assert unfolded.shape == (2, size, 60 // size)
        assert torch.equal(unfolded[1, 2].sort().values, tensor[1].select(mode, 2).flatten().sort().values)
    assert pad_last(torch.ones(2, 3), 5).tolist() == [[1, 1, 1, 0, 0]] * 2
    assert pad_last(torch.ones(2, 3), 2).shape == (2, 3)


@pytest.mark.parametrize("m", [3, 255, 256, 301])
def test_a_gram_matrix_is_the_product_and_symmetric(m: int) -> None:
    matrix = random(2, m, 20)
    torch.testing.assert_close(gram(matrix), matrix @ matrix.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(gram(matrix), gram(matrix).mT, rtol=0, atol=1e-13)
    strided = random(2, 20, m).mT
    torch.testing.assert_close(gram(strided), strided @ strided.mT, rtol=0, atol=1e-12)


def test_balanced_columns_share_their_norms() -> None:
    left, right = torch.linalg.qr(random(2, 9, 4)).Q, random(2, 4, 7, seed=1)
    right[0, 2] = 0
    a, b = balanced_columns(left, right)
    torch.testing.assert_close(a @ b, left @ right, rtol=0, atol=1e-12)
    norms = a.norm(dim=-2), b.norm(dim=-1)
    torch.testing.assert_close(norms[0][1], norms[1][1], rtol=1e-12, atol=0)
    assert norms[1][0, 2] == 0
    assert bool(a.isfinite().all())


def columns(case: str, m: int, r: int, dtype: torch.dtype) -> torch.Tensor:
    """Columns that are easy, of very different norms, nearly or wholly dependent, or nothing."""
    matrix = random(2, m, r)
    if case == "norms":
        matrix *= torch.logspace(0, -30 if dtype == torch.float64 else -12, r, dtype=torch.float64)
    elif case == "ill-conditioned":
        turned = torch.linalg.qr(random(2, r, r, seed=1)).Q
        matrix = torch.linalg.qr(matrix).Q @ (torch.logspace(0, -6, r, dtype=torch.float64).unsqueeze(-1) * turned)
    elif case == "twins":
        matrix[..., 1::2] = matrix[..., : r - 1 : 2]
    elif case == "zeros":
        matrix[:, :, r // 2 :] = 0
    elif case == "nothing":
        matrix.zero_()
    return matrix.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["easy", "norms", "ill-conditioned", "twins", "zeros", "nothing"])
@pytest.mark.parametrize(("m", "r"), [(20, 6), (100, FEW_COLUMNS), (64, 64), (300, 90)])
def test_a_basis_is_orthonormal_whatever_the_columns_are(m: int, r: int, case: str, dtype: torch.dtype) -> None:
    given = columns(case, m, r, dtype)
    basis = orthonormal(given)
    eps = torch.finfo(dtype).eps
    assert basis.shape == given.shape
    torch.testing.assert_close(basis.mT @ basis, identity(given, r), rtol=0, atol=50 * eps)
    for part in (r, r // 2):  # the span of the first columns is that of the first of the basis
        inside = basis[..., :part] @ (basis[..., :part].mT @ given[..., :part])
        torch.testing.assert_close(inside, given[..., :part], rtol=0, atol=20 * eps**0.5 if part < r else 200 * eps)


def test_a_basis_does_not_come_from_the_cholesky_factor_alone() -> None:
    """Of columns as ill-conditioned as those above it is not orthonormal: the tests would see it."""
    given = columns("ill-conditioned", 100, 40, torch.float64)
    triangle, failed = torch.linalg.cholesky_ex(given.mT @ given)
    assert not failed.any()
    basis = torch.linalg.solve_triangular(triangle, given.mT, upper=False).mT
    assert float((basis.mT @ basis - identity(given, 40)).abs().max()) > 1e-6


@pytest.mark.parametrize("r", [FEW_COLUMNS - 1, FEW_COLUMNS, 60])
def test_a_basis_is_made_of_matrix_products_where_that_is_safe(r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    householder, calls = torch.linalg.qr, []
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: calls.append(matrix) or householder(matrix))
    orthonormal(columns("easy", 200, r, torch.float32))
    assert len(calls) == (r < FEW_COLUMNS)
    orthonormal(columns("twins", 200, r, torch.float32))
    assert len(calls) == 1 + (r < FEW_COLUMNS)


def test_leading_left_vectors_are_those_of_the_svd() -> None:
    matrix = random(2, 30, 6)
    basis, captured = leading_left(matrix, 4)
    values = torch.linalg.svdvals(matrix)
    assert float(captured) == pytest.approx(float(values[:, :4].square().sum()), rel=1e-12)
    assert float((basis.mT @ matrix).square().sum()) == pytest.approx(float(captured), rel=1e-12)
    torch.testing.assert_close(basis.mT @ basis, identity(matrix, 4), rtol=0, atol=1e-12)


def test_filtering_finds_the_leading_eigenvectors() -> None:
    """From the eigenvectors of a matrix nearby, as in HOOI, it gains with every step, and more than power steps do."""
    matrix = random(2, 40, 60)
    gram_matrix = gram(matrix)
    values, _ = eigh_descending(gram_matrix)
    rank = 8
    best = float(values[:, :rank].sum())
    start = eigh_descending(gram(matrix + 0.05 * random(2, 40, 60, seed=1)))[1][..., :rank]
    low, high = unwanted(values, rank)
    assert (low, high) == (float(values[:, -1].min()), float(values[:, rank].max()))
    missing = [best - float((start.mT @ gram_matrix @ start).diagonal(dim1=-2, dim2=-1).sum())]
    basis = start
    for _ in range(4):
        basis, captured = filtered(gram_matrix, basis, low, high)
        missing.append(best - float(captured))
        torch.testing.assert_close(basis.mT @ basis, identity(basis, rank), rtol=0, atol=1e-12)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(missing))
    power = torch.linalg.qr(gram_matrix @ (gram_matrix @ start)).Q  # as many products as one filtered step
    assert missing[1] < best - float((power.mT @ gram_matrix @ power).diagonal(dim1=-2, dim2=-1).sum())
    assert missing[-1] < 0.02 * missing[0]


def test_filtering_survives_a_flat_spectrum() -> None:
    gram_matrix = identity(torch.zeros(1, dtype=torch.float64), 6)
    low, high = unwanted(eigh_descending(gram_matrix)[0], 2)
    assert high > low
    basis, captured = filtered(gram_matrix, identity(gram_matrix, 6)[..., :2], low, high)
    assert bool(basis.isfinite().all())
    assert float(captured) == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filtering_survives_low_rank(dtype: torch.dtype) -> None:
    """More columns are kept than there is rank: what is unwanted is rounding alone, and must not be blown up."""
    gram_matrix = gram(random(2, 30, 2).to(dtype))
    values, vectors = eigh_descending(gram_matrix)
    basis, captured = filtered(gram_matrix, vectors[..., :9], *unwanted(values, 9))
    assert bool(basis.isfinite().all())
    assert float(captured) == pytest.approx(float(values.sum()), rel=1e-5)


def test_wide_is_double_but_for_giants() -> None:
    assert wide_dtype(torch.zeros(3)) == torch.float64
    assert wide_dtype(torch.zeros(1, device="meta").expand(2**27 + 1)) == torch.float32
