"""Tucker-2 fitted to the layer's output: what it predicts, and that nothing in its reach is better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankfold.errors import RankfoldError
from rankfold.factor.linalg import Metric
from rankfold.factor.regression import TuckerRegression, damped_cholesky
from rankfold.factor.tucker import Tucker2

G, O, I, K = 2, 5, 6, 4


@pytest.fixture
def case(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.randn(G, O, I, 2, 2, generator=generator, dtype=torch.float64)
    mixing = torch.randn(G, I * K, I * K, generator=generator, dtype=torch.float64)
    patch = mixing @ mixing.mT + 0.1 * torch.eye(I * K, dtype=torch.float64)
    channel = torch.einsum("gakbk->gab", patch.reshape(G, I, K, I, K)) / K
    return weight, channel, patch


def energy(weight: Tensor, patch: Tensor) -> Tensor:
    matrix = weight.flatten(2)
    return torch.einsum("gon,gnm,gom->", matrix, patch, matrix)


def product(factors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    out, core, inn = factors
    return torch.einsum("goa,gabk,gbi->goik", out, core, inn)


def test_the_prediction_is_what_the_factors_reach(case: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, channel, patch = case
    prepared = TuckerRegression.of(weight, channel, patch)
    for ranks in [(1, 1), (2, 5), (5, 2), (3, 3), (5, 6)]:
        left = energy(weight.flatten(3) - product(prepared.factors(*ranks)), patch) / energy(weight, patch)
        assert prepared.relative_error(*ranks) == pytest.approx(float(left.clamp_min(0)) ** 0.5, abs=1e-5)


def test_the_error_never_grows_with_a_rank(case: tuple[Tensor, Tensor, Tensor]) -> None:
    prepared = TuckerRegression.of(*case)
    table = [[prepared.relative_error(a, b) for b in range(1, I + 1)] for a in range(1, O + 1)]
    for a in range(O):
        for b in range(I):
            assert a == 0 or table[a][b] <= table[a - 1][b] + 1e-12
            assert b == 0 or table[a][b] <= table[a][b - 1] + 1e-12
    assert table[-1][-1] < 1e-6
    assert table[0][0] > 0.5


def test_no_core_or_output_basis_is_better(case: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> None:
    weight, channel, patch = case
    out, core, inn = TuckerRegression.of(weight, channel, patch).factors(3, 4)
    best = energy(weight.flatten(3) - product((out, core, inn)), patch)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(20):
            moved_core = core + scale * torch.randn(core.shape, generator=generator, dtype=core.dtype)
            moved_out = out + scale * torch.randn(out.shape, generator=generator, dtype=out.dtype)
            assert energy(weight.flatten(3) - product((out, moved_core, inn)), patch) > best
            assert energy(weight.flatten(3) - product((moved_out, core, inn)), patch) > best


def test_it_beats_factors_that_see_the_channel_moment_only(case: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, channel, patch = case
    metric = Metric.of(channel)
    whitened = torch.einsum("goik,gij->gojk", weight.flatten(3), metric.root)
    others = Tucker2(whitened, metric).hooi(3, 3, iterations=10, tolerance=0.0)
    fitted = TuckerRegression.of(weight, channel, patch).factors(3, 3)
    errors = [float(energy(weight.flatten(3) - product(f), patch)) for f in (fitted, others)]
    assert errors[0] < errors[1]


def test_moments_of_few_samples_and_of_none_still_work(case: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, channel, _ = case
    few = torch.zeros(G, I * K, I * K, dtype=torch.float64)
    few[:, 0, 0] = 1.0
    few[:, 1, 1] = -1e-4  # as sums in single precision can be
    for patch in (few, torch.zeros_like(few)):
        prepared = TuckerRegression.of(weight, channel, patch)
        torch.testing.assert_close(product(prepared.factors(O, I)), weight.flatten(3), rtol=1e-6, atol=1e-8)


def test_a_zero_weight_has_no_error(case: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, channel, patch = case
    prepared = TuckerRegression.of(torch.zeros_like(weight), channel, patch)
    assert prepared.relative_error(1, 1) == 0.0
    assert float(product(prepared.factors(2, 2)).abs().max()) == 0.0


def test_what_is_no_second_moment_is_refused() -> None:
    with pytest.raises(RankfoldError, match="not positive semidefinite"):
        damped_cholesky(-torch.eye(3, dtype=torch.float64).unsqueeze(0) * torch.tensor([5.0, 5.0, -10.1]), 1e-6)


def test_the_order_of_questions_does_not_matter(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Grams are built upon those of smaller ranks; asked upwards, downwards or alone the answers are the same."""
    weight, channel, patch = case
    up, down = TuckerRegression.of(weight, channel, patch), TuckerRegression.of(weight, channel, patch)
    rising = {(o, i): up.relative_error(o, i) for i in range(1, I + 1) for o in range(1, O + 1)}
    falling = {(o, i): down.relative_error(o, i) for i in range(I, 0, -1) for o in range(O, 0, -1)}
    for ranks, error in rising.items():
        # The error is the root of what is left of an energy: rounding shows in its square.
        assert falling[ranks] ** 2 == pytest.approx(error**2, abs=1e-14)
        alone = TuckerRegression.of(weight, channel, patch)
        torch.testing.assert_close(product(up.factors(*ranks)), product(alone.factors(*ranks)), rtol=0, atol=1e-9)
    assert len({round(error, 6) for error in rising.values()}) > 10
