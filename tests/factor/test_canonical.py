"""CP against TensorLy, planted tensors, and the start's own bound."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac
from torch import Tensor

from rankfold import zoo
from rankfold.factor.als import Effort, _Members, reconstruct, refine, terms_energy
from rankfold.factor.canonical import Canonical


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(shape: tuple[int, ...], rank: int, seed: int) -> Tensor:
    return reconstruct([random(1, n, rank, seed=100 * seed + mode) for mode, n in enumerate(shape)])


def achieved(tensor: Tensor, factors: list[Tensor]) -> float:
    return float((reconstruct(factors) - tensor).norm() / tensor.norm())


PLANTED = [
    ((8, 6, 3, 3), 3),
    ((8, 6, 3, 3), 5),
    ((16, 12, 3, 3), 6),
    ((16, 12, 3, 3), 20),  # more terms than channels: no pencil
    ((12, 10, 5, 5), 18),
    ((8, 6, 3), 3),
    ((6, 5, 3, 3, 3), 4),
    ((64, 48, 3, 3), 30),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "rank"), PLANTED)
def test_a_planted_tensor_is_recovered(shape: tuple[int, ...], rank: int, seed: int) -> None:
    tensor = planted(shape, rank, seed)
    start = Canonical(tensor)
    assert start.relative_error(rank) > 0.05  # the start alone does not find it
    assert achieved(tensor, start.factors(rank, Effort())) < 1e-6  # measured: 1e-16 to 3e-8
    assert achieved(tensor, start.factors(rank - 1, Effort())) > 1e-3


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (7, 5, 2), (4, 6, 2, 3, 2), (6, 4)])
def test_rank_one_is_found_at_once(shape: tuple[int, ...]) -> None:
    tensor = planted(shape, 1, 7)
    start = Canonical(tensor)
    assert start.relative_error(1) < 1e-7
    assert achieved(tensor, start.factors(1, Effort(iterations=0))) < 1e-12


def layer(number: int) -> tuple[Tensor, int]:
    """Return a random layer's weight of norm 1 and a rank: noise, falling spectra, nearly low rank, one outlier."""
    source = np.random.default_rng(number)
    kernel = [int(k) for k in source.choice([1, 2, 3, 3, 5], size=source.choice([1, 2, 2, 2, 3]))]
    shape = (*(int(n) for n in source.integers(2, 15, size=2)), *kernel)
    rank = max(1, int(source.uniform(0.05, 0.9) * np.prod(shape) / sum(shape)))
    weight = random(1, *shape, seed=number)
    if number % 4 == 1:
        for mode in (1, 2):
            n = weight.shape[mode]
            turn = torch.linalg.qr(random(n, n, seed=number + mode)).Q / torch.arange(1, n + 1, dtype=torch.float64)
            weight = (weight.movedim(mode, -1) @ turn).movedim(-1, mode)
    elif number % 4 == 2:
        weight = planted(shape, rank, number) + 0.05 * weight
    elif number % 4 == 3:
        weight.view(-1)[0] *= 30
    return weight / weight.norm(), rank


def tensorlys_best(weight: Tensor, rank: int) -> float:
    """Return the least error of three runs of ``parafac`` with its defaults: from the SVD, and twice at random."""
    errors = []
    for seed, init in enumerate(("svd", "random", "random")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its start is filled up at random
            try:
                found = parafac(weight[0].numpy(), rank, init=init, random_state=seed)
            except np.linalg.LinAlgError:  # its normal equations became singular
                continue
        errors.append(float(np.linalg.norm(tensorly.cp_to_tensor(found) - weight[0].numpy())))
    return min(errors, default=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, 20))
def test_a_hundred_layers_against_three_restarts_of_tensorly(first: int) -> None:
    """Never NaN, terms bounded, the error at most 1e-3 above the best of three runs; on the average far below it."""
    gains = []
    for number in range(first, first + 20):
        weight, rank = layer(number)
        factors = Canonical(weight).factors(rank, Effort())
        assert all(bool(f.isfinite().all()) for f in factors)
        assert float(terms_energy(factors)) <= 100.11
        error, theirs = achieved(weight, factors), tensorlys_best(weight, rank)
        assert error <= theirs + 1e-3, (number, tuple(weight.shape), rank)
        gains.append(theirs - error)
    assert np.mean(gains) > 0.002  # the comparison is not against nothing


@pytest.mark.parametrize("share", [0.15, 0.4, 0.75])
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_trained_layers_against_three_restarts_of_tensorly(name: str, share: float) -> None:
    weight = zoo.create("lenet5_mnist5k", weights="bundled").get_submodule(name).weight.detach().double().unsqueeze(0)
    weight = weight / weight.norm()
    rank = max(1, int(share * weight.numel() / sum(weight.shape[1:])))
    factors = Canonical(weight).factors(rank, Effort())
    assert float(terms_energy(factors)) <= 100.11
    assert achieved(weight, factors) <= tensorlys_best(weight, rank) + 1e-3


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)),
    rank=st.integers(1, 20),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 99),
)
def test_any_tensor_at_any_rank(shape: tuple[int, ...], rank: int, exponent: int, seed: int) -> None:
    """Never NaN, never above the bound, terms bounded, at any scale and above the exact rank, too."""
    tensor = random(2, *shape, seed=seed) * 10.0**exponent
    canonical = Canonical(tensor)
    factors = canonical.factors(rank, Effort(iterations=30))
    assert [tuple(f.shape) for f in factors] == [(2, n, rank) for n in shape]
    assert all(bool(f.isfinite().all()) for f in factors)
    assert achieved(tensor, factors) <= canonical.relative_error(rank) + 1e-7
    assert bool((terms_energy(factors) <= 100.11 * tensor.flatten(1).square().sum(1)).all())


def degenerate() -> Tensor:
    """Return a tensor of border rank 2 and rank 3: its best rank-2 approximations diverge (de Silva & Lim 2008)."""
    a, b = torch.eye(4, dtype=torch.float64)[:2]
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    return torch.stack([torch.einsum("i,j,k->ijk", *term) for term in terms]).sum(0).unsqueeze(0)


@pytest.mark.parametrize("limit", [2.0, 100.0])
def test_terms_of_a_degenerate_tensor_stay_bounded(limit: float) -> None:
    tensor = degenerate()
    factors = Canonical(tensor).factors(2, Effort(norm_limit=limit, tolerance=0))
    assert float(terms_energy(factors)) <= 1.002 * limit * float(tensor.square().sum())
    loose = Canonical(tensor).factors(2, Effort(norm_limit=1e12, tolerance=0))
    assert float(terms_energy(loose)) > 1e3 * float(tensor.square().sum())  # without the bound they do diverge
    assert achieved(tensor, factors) > achieved(tensor, loose)


def test_a_target_ends_the_iterations() -> None:
    tensor = random(1, 12, 10, 3, 3)
    canonical = Canonical(tensor)
    far, near = (achieved(tensor, canonical.factors(8, effort)) for effort in (Effort(target=0.84), Effort()))
    assert near < far - 0.003
    assert far <= 0.84
    start = canonical.relative_error(8)
    at_once = achieved(tensor, canonical.factors(8, Effort(target=start + 1e-9)))
    assert at_once == pytest.approx(start, abs=1e-9)


def test_large_tensors_are_iterated_in_single_precision_and_end_as_exact() -> None:
    """Above 2**17 elements sweeps run in float32 until the error is small, then in float64."""
    shape, rank = (64, 48, 7, 7), 20
    assert math.prod(shape) > 2**17
    truth = [random(1, n, rank, seed=mode) for mode, n in enumerate(shape)]
    near = [f + 0.5 * random(*f.shape, seed=9 + mode) for mode, f in enumerate(truth)]
    tensor = reconstruct(truth)
    assert achieved(tensor, near) > 0.5
    assert achieved(tensor, refine(tensor, [near], Effort())) < 1e-6
    single = refine(tensor.float(), [[f.float() for f in near]], Effort())
    assert single[0].dtype == torch.float32
    assert achieved(tensor, single) < 1e-5


@pytest.mark.parametrize("iterations", [0, 5, 50])
def test_the_start_bounds_the_error(iterations: int) -> None:
    tensor = random(3, 6, 5, 3, 3)
    start = Canonical(tensor)
    for rank in (1, 2, 7, 20, start.max_rank - 1, start.max_rank):
        error = achieved(tensor, start.factors(rank, Effort(iterations=iterations, tolerance=1e-6)))
        assert error <= start.relative_error(rank) + 1e-7
        if iterations == 0:
            assert error == pytest.approx(start.relative_error(rank), abs=1e-7)
    assert start.max_rank == 45
    assert start.relative_error(start.max_rank) < 1e-7


def test_only_the_fits_of_ranks_in_demand_are_computed() -> None:
    tensor, effort = random(1, 16, 12, 3, 3), Effort(iterations=5)
    canonical, whole = Canonical(tensor), Canonical(tensor)
    last = whole.max_rank - 1
    whole.relative_error(last, effort)
    steps = [fit.rank for fit in whole._fits[effort].climbed]
    assert len(steps) > 4
    canonical.relative_error(canonical.max_rank, effort)  # the slices are exact
    assert effort not in canonical._fits
    for rank in (steps[2], steps[4] - 1, steps[1]):
        assert canonical.relative_error(rank, effort) == whole.relative_error(rank, effort)
    assert [fit.rank for fit in canonical._fits[effort].climbed] == steps[:4]
    assert canonical.relative_error(last, effort) == whole.relative_error(last, effort)
    assert [fit.rank for fit in canonical._fits[effort].climbed] == steps


def test_iterations_help() -> None:
    tensor = random(1, 8, 6, 3, 3)
    start = Canonical(tensor)
    errors = [achieved(tensor, start.factors(6, Effort(iterations=n, tolerance=0))) for n in (0, 1, 5, 50)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] - 0.02


def test_columns_are_of_even_norm() -> None:
    """What diverges in CP is pairs of huge columns that cancel; here norms are shared among the modes."""
    tensor = random(1, 8, 6, 3, 3)
    factors = Canonical(tensor).factors(10, Effort(iterations=50, tolerance=1e-6))
    norms = torch.stack([f.norm(dim=1) for f in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-6, atol=0)
    assert float(norms.max()) ** len(factors) < 10 * float(tensor.norm())


def test_a_batch_is_its_members_at_the_start() -> None:
    tensor = random(3, 6, 5, 3)
    whole = Canonical(tensor).factors(4, Effort(iterations=0, tolerance=0))
    for member in range(3):
        one = Canonical(tensor[member : member + 1]).factors(4, Effort(iterations=0, tolerance=0))
        torch.testing.assert_close(reconstruct(one)[0], reconstruct(whole)[member], rtol=0, atol=1e-10)


def test_a_zero_member_does_not_spoil_the_others() -> None:
    tensor = random(2, 6, 5, 3)
    tensor[1] = 0
    factors = Canonical(tensor).factors(5, Effort(iterations=50, tolerance=1e-8))
    assert all(bool(f.isfinite().all()) for f in factors)
    both = reconstruct(factors)
    assert not both[1].any()
    assert float((both[0] - tensor[0]).norm() / tensor[0].norm()) < Canonical(tensor[:1]).relative_error(5) + 1e-9


def test_going_on_in_double_precision_keeps_what_is_best() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, 6, 5, 4, generator=generator)
    factors = [torch.randn(4, n, 3, generator=generator) for n in (6, 5, 4)]
    members = _Members(tensor, factors, 2, 100.0)
    for _ in range(5):
        members.step()
    members.best_error[1] = torch.inf  # a start that was beyond the limit in every sweep
    before = members.best_error.clone()
    members.widen(tensor.double())
    torch.testing.assert_close(members.best_error, before, rtol=1e-4, atol=0)
    for index in (0, 2, 3):
        found = reconstruct([f[index : index + 1] for f in members.best])
        exact = (found - tensor[index % 2].double()).square().sum()
        torch.testing.assert_close(members.best_error[index], exact)
