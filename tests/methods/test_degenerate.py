"""Weights whose spectra end early, fall steeply or repeat: factors are finite and keep the predicted error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.testing import LayerCase
from rankfold.testing.subject import Subject, random_ranks, relative_error

OUT, IN, KERNEL = 35, 33, (3, 2)
CLOSED_FORM = [name for name in methods.registry.names() if name not in ("cp", "filterwise_cp")]


def subject(name: str, dtype: torch.dtype) -> Subject:
    conv = {"in_channels": IN, "out_channels": OUT, "kernel_size": KERNEL}
    case = Subject.of(LayerCase(id="one", kind=nn.Conv2d, options=conv, input_shape=(1, IN, 5, 5), dtype=dtype))
    if methods.get(name).supports(case.info) is None:
        return case
    linear = {"in_features": IN, "out_features": OUT}
    return Subject.of(LayerCase(id="one", kind=nn.Linear, options=linear, input_shape=(1, IN), dtype=dtype))


def weights(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return matrices ``(OUT, n)``."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    one = torch.zeros(OUT, n, dtype=torch.float64)
    one[0, 0] = 1
    return {
        "integers": torch.randint(-1, 2, (OUT, n), generator=generator).double(),
        "rank 1": normal(OUT, 1).expand(OUT, n).clone(),
        "rank 4": normal(OUT, 4) @ normal(4, n),
        "sparse": normal(OUT, n) * (torch.rand(OUT, n, generator=generator) < 0.05),
        "columns over 3 decades": normal(OUT, n) * torch.logspace(0, -3, n, dtype=torch.float64),
        "columns over 12 decades": normal(OUT, n) * torch.logspace(0, -12, n, dtype=torch.float64),
        "one entry": one,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_degenerate_weights_keep_the_predicted_error(name: str, dtype: torch.dtype) -> None:
    case, method = subject(name, dtype), methods.get(name)
    generator = torch.Generator().manual_seed(0)
    errors: list[float] = []
    for kind, matrix in weights(case.weight[0].numel(), generator).items():
        case.set_weight(matrix.reshape(case.weight.shape))
        prepared = methods.prepare(method, case.weight, case.info)
        for ranks in random_ranks(method, case.info, generator, count=6):
            factors = prepared.factorize(ranks)
            assert all(bool(factor.isfinite().all()) for factor in factors), f"{kind}, ranks {ranks}"
            achieved = relative_error(case.built(method, ranks, factors, dtype=torch.float64).weight, case.weight)
            assert achieved <= prepared.error(ranks) + 1e-6, f"{kind}, ranks {ranks}"
            errors.append(achieved)
    assert max(errors) > 0.1  # something was lost
    assert min(errors) < 1e-6  # and something was not
