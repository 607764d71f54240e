"""The short root of ``M C M^T`` serves channel SVD as well as the root of C, which may be far larger."""

from __future__ import annotations

import pytest
import torch

from rankfold.factor.matrix import SVDProjection
from rankfold.factor.moments import Moments
from rankfold.methods.svd import in_metric, short_metric


@pytest.mark.parametrize("with_patch", [True, False])
@pytest.mark.parametrize("shape", [(1, 10, 48), (1, 24, 16, 3, 3), (2, 12, 8, 3)])
def test_same_errors_and_factors(shape: tuple[int, ...], with_patch: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = weight.flatten(2).shape[2]
    x = torch.randn(shape[0], size, 4 * size, generator=generator, dtype=torch.float64)
    x *= torch.logspace(0, -2, size, dtype=torch.float64)[:, None]
    patch = x @ x.mT / (4 * size)
    moments = Moments(channel=patch[:, : shape[2], : shape[2]], patch=patch if with_patch else None, count=4 * size)
    short = short_metric(weight, moments)
    assert short is not None
    assert short.shape == (shape[0], shape[1], shape[1])
    new, old = (SVDProjection(weight.flatten(2), seen) for seen in (short, in_metric(weight, moments)))
    plain = SVDProjection(weight.flatten(2))
    for rank in (1, shape[1] // 2, shape[1]):
        assert new.relative_error(rank) == pytest.approx(old.relative_error(rank), abs=1e-5)
        products = [left @ right for left, right in (new.factors(rank), old.factors(rank), plain.factors(rank))]
        torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)
    rank = shape[1] // 2  # the metric matters: without it both would be the same
    products = [left @ right for left, right in (new.factors(rank), plain.factors(rank))]
    assert (products[0] - products[1]).norm() > 0.05 * products[0].norm()


def test_moments_of_nothing_count_as_the_weight_alone() -> None:
    weight = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nothing = Moments(channel=torch.zeros(1, 20, 20, dtype=torch.float64), patch=None, count=1)
    new, plain = SVDProjection(weight, short_metric(weight, nothing)), SVDProjection(weight)
    assert new.relative_error(3) == pytest.approx(plain.relative_error(3))
