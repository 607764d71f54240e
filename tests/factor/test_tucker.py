"""Tucker-2 against TensorLy, the bounds of the HOSVD, planted tensors, and regression on the data's patches."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor

from rankfold.factor.linalg import Metric
from rankfold.factor.regression import TuckerRegression
from rankfold.factor.tucker import Tucker2

Factors = tuple[Tensor, Tensor, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment_of(n: int, *, groups: int = 1, seed: int = 1) -> Tensor:
    basis = torch.linalg.qr(random(groups, n, n, seed=seed)).Q
    return (basis * torch.logspace(0, -3, n, dtype=torch.float64)) @ basis.mT


def compose(factors: Factors, shape: tuple[int, ...]) -> Tensor:
    out, core, inn = factors
    return torch.einsum("goa,gabk,gbi->goik", out, core, inn).reshape(shape)


def achieved(factors: Factors, weight: Tensor) -> float:
    return float((compose(factors, weight.shape) - weight).norm() / weight.norm())


@pytest.mark.parametrize("ranks", [(1, 1), (3, 2), (2, 4), (8, 3), (5, 6), (7, 5)])
def test_errors_are_tensorlys(ranks: tuple[int, int]) -> None:
    weight = random(1, 8, 6, 3, 3)
    tucker = Tucker2(weight)
    found: Any = cast(Any, partial_tucker)(weight[0].numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=200, tol=1e-10)
    core, factors = found[0]
    whole = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    theirs = np.linalg.norm(whole - weight[0].numpy()) / float(weight.norm())
    ours = achieved(tucker.hooi(*ranks, iterations=200, tolerance=1e-12), weight)
    assert ours == pytest.approx(theirs, abs=1e-4)
    hosvd = achieved(tucker.hooi(*ranks, iterations=0, tolerance=0), weight)
    assert hosvd == pytest.approx(tucker.relative_error(*ranks), abs=1e-7)
    assert ours <= hosvd + 1e-12


def test_iterations_help_and_never_hurt() -> None:
    weight = random(2, 8, 6, 3, 3)
    tucker = Tucker2(weight)
    errors = [achieved(tucker.hooi(3, 2, iterations=n, tolerance=0), weight) for n in range(8)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0] - 1e-3


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((1, 40, 40, 3, 3), (10, 10)),  # filtered subspaces
        ((1, 40, 40, 3, 3), (30, 30)),  # what is dropped is the smaller part
        ((1, 90, 30, 3), (20, 12)),  # few columns once the inputs are projected
        ((3, 30, 20, 5), (8, 6)),  # groups
        ((1, 12, 48, 9), (5, 20)),  # the output mode is the shorter one
    ],
)
def test_every_way_through_the_iteration_is_tensorlys(shape: tuple[int, ...], ranks: tuple[int, int]) -> None:
    weight = random(*shape)
    ours = achieved(Tucker2(weight).hooi(*ranks, iterations=60, tolerance=0), weight)
    squares = 0.0
    for member in weight:
        found: Any = cast(Any, partial_tucker)(member.numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=60, tol=1e-8)
        core, factors = found[0]
        whole = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
        squares += float(np.linalg.norm(whole - member.numpy()) ** 2)
    theirs = (squares / float(weight.square().sum())) ** 0.5
    assert ours == pytest.approx(theirs, abs=1e-3)  # local optima of noise
    hosvd = Tucker2(weight).relative_error(*ranks)
    assert ours <= hosvd + 1e-12
    assert hosvd - theirs > 2e-3  # there was something to find


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("true_rank", [1, 3])
def test_more_ranks_than_the_weight_has(dtype: torch.dtype, true_rank: int) -> None:
    """The filters between two decompositions see spectra that are zero but for rounding."""
    parts = random(1, 35, true_rank), random(1, true_rank, true_rank, 9, seed=1), random(1, true_rank, 33, seed=2)
    weight = compose(parts, (1, 35, 33, 9)).to(dtype)
    tucker = Tucker2(weight)
    for ranks in ((20, 16), (5, 20), (true_rank, true_rank), (30, 4)):
        factors = tucker.hooi(*ranks, iterations=20, tolerance=1e-4)
        assert all(bool(factor.isfinite().all()) for factor in factors)
        doubles = cast(Factors, tuple(factor.double() for factor in factors))
        assert achieved(doubles, weight.double()) < 1e-6


def test_more_output_ranks_than_the_inputs_leave_are_filled() -> None:
    weight = random(1, 90, 30, 3)
    out, core, inn = Tucker2(weight).hooi(70, 12, iterations=5, tolerance=1e-4)
    torch.testing.assert_close(out.mT @ out, torch.eye(70, dtype=torch.float64)[None], rtol=0, atol=1e-10)
    best = Tucker2(weight).relative_error(90, 12)  # only the inputs are truncated
    assert achieved((out, core, inn), weight) == pytest.approx(best, abs=1e-9)


def test_hosvd_is_within_root_two_of_the_best() -> None:
    """De Lathauwer et al. (2000), property 10: with N truncated modes the error is at most root N times the best."""
    for seed in range(10):
        weight = random(1, 7, 6, 3, seed=seed)
        tucker = Tucker2(weight)
        tails = [torch.linalg.svdvals(weight[0].movedim(mode, 0).flatten(1)).square() for mode in (0, 1)]
        for ranks in ((2, 2), (4, 1), (6, 5)):
            lost = [float(t[r:].sum()) for t, r in zip(tails, ranks, strict=True)]
            total = float(weight.square().sum())
            error = tucker.relative_error(*ranks)
            assert error**2 * total <= sum(lost) * (1 + 1e-9)
            best = achieved(tucker.hooi(*ranks, iterations=100, tolerance=0), weight)
            assert best >= (max(lost) / total) ** 0.5 - 1e-9
            assert error <= 2**0.5 * best + 1e-9


def test_tt_svd_is_no_worse_than_hosvd() -> None:
    weight = random(2, 8, 6, 3, 3)
    tucker = Tucker2(weight)
    for ranks in itertools.product((1, 3, 8), (1, 4, 6)):
        assert achieved(tucker.sequential(*ranks), weight) <= tucker.relative_error(*ranks) + 1e-7


@pytest.mark.parametrize("groups", [1, 2])
def test_a_planted_core_is_recovered(groups: int) -> None:
    weight = compose(
        (random(groups, 9, 3), random(groups, 3, 2, 9, seed=1), random(groups, 2, 7, seed=2)), (groups, 9, 7, 3, 3)
    )
    tucker = Tucker2(weight)
    assert tucker.relative_error(3, 2) < 1e-7
    assert achieved(tucker.hooi(3, 2, iterations=10, tolerance=1e-5), weight) < 1e-10
    assert achieved(tucker.sequential(3, 2), weight) < 1e-10
    assert tucker.relative_error(2, 2) > 1e-2
    assert tucker.relative_error(3, 1) > 1e-2


def test_factors_have_orthonormal_sides_in_a_metric_too() -> None:
    moment = moment_of(6)
    metric = Metric.of(moment)
    weight = random(1, 8, 6, 3, 3)
    seen = torch.einsum("goikl,gij->gojkl", weight, metric.root)
    out, core, inn = Tucker2(seen, metric).hooi(3, 2, iterations=10, tolerance=1e-6)
    torch.testing.assert_close(out.mT @ out, torch.eye(3, dtype=torch.float64)[None], rtol=0, atol=1e-10)
    torch.testing.assert_close(inn @ inn.mT, torch.eye(2, dtype=torch.float64)[None], rtol=0, atol=1e-10)
    difference = compose((out, core, inn), weight.shape) - weight
    in_metric = torch.einsum("goikl,gij->gojkl", difference, metric.root).norm() / seen.norm()
    assert float(in_metric) <= Tucker2(seen, metric).relative_error(3, 2) + 1e-7


def energy(weight: Tensor, patch: Tensor) -> float:
    rows = weight.flatten(2)
    return float(torch.einsum("gon,gnm,gom->", rows, patch, rows))


@pytest.mark.parametrize("groups", [1, 2])
def test_regression_reaches_exactly_what_it_predicts(groups: int) -> None:
    weight, patch = random(groups, 5, 4, 3, 2), moment_of(24, groups=groups)
    channel = patch.reshape(groups, 4, 6, 4, 6).diagonal(dim1=2, dim2=4).mean(-1)
    regression = TuckerRegression.of(weight, channel, patch, floor=1e-12)
    for ranks in itertools.product(range(1, 6), range(1, 5)):
        difference = compose(regression.factors(*ranks), weight.shape) - weight
        error = (max(0.0, energy(difference, patch)) / energy(weight, patch)) ** 0.5
        assert error == pytest.approx(regression.relative_error(*ranks), abs=1e-5)
    assert regression.relative_error(5, 4) < 1e-6
    assert regression.relative_error(4, 3) > 1e-3


def test_no_other_core_or_output_side_is_better_on_the_data() -> None:
    weight, patch = random(1, 5, 4, 3), moment_of(12)
    channel = patch.reshape(1, 4, 3, 4, 3).diagonal(dim1=2, dim2=4).mean(-1)
    out, core, inn = TuckerRegression.of(weight, channel, patch, floor=1e-12).factors(2, 2)
    least = energy(compose((out, core, inn), weight.shape) - weight, patch)
    for seed in range(300):
        scale = 10.0 ** -(seed % 6)
        other = (out + scale * random(*out.shape, seed=seed), core + scale * random(*core.shape, seed=seed + 999), inn)
        assert energy(compose(other, weight.shape) - weight, patch) >= least * (1 - 1e-9)


def test_regression_beats_the_channel_metric_on_correlated_patches() -> None:
    better = 0
    for seed in range(5):
        weight, patch = random(1, 8, 6, 3, 3, seed=seed), moment_of(54, seed=seed + 50)
        channel = patch.reshape(1, 6, 9, 6, 9).diagonal(dim1=2, dim2=4).mean(-1)
        metric = Metric.of(channel)
        seen = torch.einsum("goikl,gij->gojkl", weight, metric.root)
        blind = Tucker2(seen, metric).hooi(4, 3, iterations=20, tolerance=1e-8)
        fitted = TuckerRegression.of(weight, channel, patch).factors(4, 3)
        losses = [energy(compose(f, weight.shape) - weight, patch) for f in (fitted, blind)]
        better += losses[0] < losses[1]
    assert better == 5


def test_zero_weights_and_silent_inputs() -> None:
    zero = torch.zeros(1, 4, 3, 3, 3, dtype=torch.float64)
    assert Tucker2(zero).relative_error(1, 1) == 0
    assert not compose(Tucker2(zero).hooi(2, 2, iterations=5, tolerance=0), zero.shape).any()
    weight = random(1, 4, 3, 3, 3)
    silent = TuckerRegression.of(weight, torch.zeros(1, 3, 3).double(), torch.zeros(1, 27, 27).double())
    assert achieved(silent.factors(4, 3), weight) < 1e-9
