"""Principal angles against SciPy, their invariances and accuracy; the order of removal against its description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankfold.factor import subspaces
from rankfold.factor.subspaces import Subspaces, removal_order


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(one: Tensor, other: Tensor) -> Tensor:
    """Return the angles of two matrices, the smallest first."""
    width = max(one.shape[1], other.shape[1])
    padded = torch.stack([torch.nn.functional.pad(matrix, (0, width - matrix.shape[1])) for matrix in (one, other)])
    spaces = Subspaces.of(padded)
    found = spaces.angles(torch.tensor([0]), torch.tensor([1]))[0]
    return found[: int(spaces.dimensions.min())]


def distance(one: Tensor, other: Tensor) -> float:
    return float(Subspaces.of(torch.stack([one, other])).distances()[0, 1])


SCIPY = 5e-8
"""SciPy chooses between sine and cosine in the wrong order if there are several angles, so its small angles may come
from cosines, which are accurate to the root of the rounding error."""

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))


@given(SHAPES)
def test_angles_equal_scipys(shape: tuple[int, int, int, int]) -> None:
    m, r, s, seed = shape
    one, other = random(m, r, seed=seed), random(m, s, seed=seed + 1)
    expected = np.sort(scipy.linalg.subspace_angles(one.numpy(), other.numpy()))
    np.testing.assert_allclose(angles(one, other), expected, atol=SCIPY)


@given(SHAPES, st.integers(1, 5))
def test_angles_of_deficient_columns_equal_scipys(shape: tuple[int, int, int, int], rank: int) -> None:
    m, r, s, seed = shape
    one = random(m, rank, seed=seed) @ random(rank, r, seed=seed + 1)
    other = random(m, s, seed=seed + 2)
    expected = np.sort(scipy.linalg.subspace_angles(one.numpy(), other.numpy()))
    np.testing.assert_allclose(angles(one, other), expected, atol=SCIPY)


@given(SHAPES, st.floats(1e-3, 1e3))
def test_scale_sign_order_and_basis_of_columns_do_not_matter(shape: tuple[int, int, int, int], scale: float) -> None:
    m, r, _, seed = shape
    one, other = random(m, r, seed=seed), random(m, r, seed=seed + 1)
    expected = distance(one, other)
    order = torch.randperm(r, generator=torch.Generator().manual_seed(seed))
    signs = random(r, seed=seed + 2).sign()
    basis = torch.eye(r, dtype=torch.float64) + 0.1 * random(r, r, seed=seed + 3) / r
    for changed in (scale * one, one * signs, one[:, order], one * torch.linspace(1, scale, r), one @ basis):
        assert distance(changed, other) == pytest.approx(expected, abs=1e-9)
        assert distance(changed, one) <= 1e-9
    assert distance(other, one) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("angle", [0.0, 1e-14, 1e-9, 1e-4, 0.1, math.pi / 4, 1.0, 1.5, math.pi / 2 - 1e-4, math.pi / 2])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_an_angle_is_exact_however_small(angle: float, rank: int) -> None:
    """The space is turned by one angle out of a common space; the cosine of the smallest is 1 to rounding."""
    turned = torch.linalg.qr(random(9, 9)).Q
    one = turned[:, :rank]
    other = torch.cat([one[:, 1:], math.cos(angle) * one[:, :1] + math.sin(angle) * turned[:, 8:]], dim=1)
    assert distance(one, other) == pytest.approx(angle, rel=1e-7, abs=1e-15)
    assert distance(one, one) <= 1e-15


def test_the_distance_grows_up_to_orthogonal() -> None:
    """The published formula falls to 0 there: the arcsine of 1, modulo pi / 2."""
    one = torch.eye(8, dtype=torch.float64)[:, :2]
    values = []
    for angle in np.linspace(0, np.pi / 2, 30):
        other = math.cos(angle) * one + math.sin(angle) * torch.eye(8, dtype=torch.float64)[:, 2:4]
        values.append(distance(one, other))
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(math.pi / 2 * math.sqrt(2))


def test_spaces_that_fill_or_contain_have_distance_zero() -> None:
    full = random(6, 3, 5, seed=1)
    assert torch.equal(Subspaces.of(full).distances(), torch.zeros(6, 6, dtype=torch.float64))
    line = random(1, 4, 1, seed=2)
    plane = torch.cat([line, random(1, 4, 1, seed=3)], dim=2)
    nothing = torch.zeros(1, 4, 2, dtype=torch.float64)
    spaces = Subspaces.of(torch.cat([torch.cat([line, line], 2), plane, nothing]))
    assert spaces.dimensions.tolist() == [1, 2, 0]
    assert spaces.distances().abs().max() < 1e-15
    assert torch.equal(spaces.overlaps().round(decimals=12), torch.ones(3, 3, dtype=torch.float64))


def test_planes_in_three_dimensions_share_a_line() -> None:
    spaces = Subspaces.of(random(5, 3, 2))
    i, j = torch.triu_indices(5, 5, offset=1)
    found = spaces.angles(i, j)
    assert torch.equal(found[:, 0], torch.zeros_like(found[:, 0]))
    assert found[:, 1].min() > 1e-3


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_huge_and_tiny_columns(scale: float) -> None:
    one, other = random(6, 2, seed=1), random(6, 2, seed=2)
    assert distance(scale * one, other) == pytest.approx(distance(one, other), abs=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_parts_of_the_pairs_do_not_matter(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = random(13, 5, rank)
    columns[4] = columns[2] + 1e-9 * columns[4]
    columns[6, :, 1:] = 0
    whole = Subspaces.of(columns)
    expected = whole.distances(), whole.overlaps()
    monkeypatch.setattr(subspaces, "CHUNK", 1000)
    assert len(list(whole._products())) > 1
    for a, b in zip((whole.distances(), whole.overlaps()), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-14)
        assert torch.equal(b, b.mT)
    i, j = torch.tensor([3, 4]), torch.tensor([7, 2])
    norms = torch.linalg.vector_norm(whole.angles(i, j), dim=1)
    assert torch.allclose(norms, expected[0][i, j], atol=1e-14)
    cosines = whole.angles(i, j).cos().square()[:, : int(whole.dimensions[3])].mean(1)
    assert float(cosines[0]) == pytest.approx(float(expected[1][3, 7]), abs=1e-12)


def plain_order(distances: Tensor) -> list[int]:
    """Remove, of the closest remaining pair, the item with the smaller sum of distances to all remaining ones."""
    left, order = list(range(len(distances))), list[int]()
    while len(left) > 1:
        pairs = [(float(distances[i, j]), i, j) for i in left for j in left if i < j]
        _, i, j = min(pairs)
        sums = [sum(float(distances[k, other]) for other in left if other != k) for k in (i, j)]
        order.append(i if sums[0] <= sums[1] + 1e-10 else j)
        left.remove(order[-1])
    return order + left


@given(st.integers(1, 14), st.integers(0, 10**6), st.sampled_from(["random", "whole numbers", "equal"]))
def test_the_order_is_that_of_the_description(n: int, seed: int, kind: str) -> None:
    half = random(n, n, seed=seed).abs()
    half = {"random": half, "whole numbers": (2 * half).round(), "equal": torch.ones_like(half)}[kind].triu(1)
    distances = half + half.mT
    before = distances.clone()
    assert removal_order(distances).tolist() == plain_order(distances)
    assert torch.equal(distances, before)


def test_of_a_cluster_one_is_left() -> None:
    points = torch.tensor([0.0, 0.01, 0.02, 5.0, 9.0], dtype=torch.float64)
    order = removal_order((points.unsqueeze(0) - points.unsqueeze(1)).abs()).tolist()
    assert set(order[:2]) < {0, 1, 2}
    assert set(order[2:]) > {3, 4}
