"""The one door to the kernels: precision, autocast, scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.errors import InvalidWeight
from rankfold.factor.moments import Moments
from rankfold.methods import Method
from rankfold.records import LayerInfo
from rankfold.testing import LayerCase
from rankfold.testing.subject import Subject, relative_error, sample_ranks


def subject(name: str, dtype: torch.dtype = torch.float32) -> Subject:
    conv = {"in_channels": 12, "out_channels": 16, "kernel_size": 3}
    case = Subject.of(LayerCase(id="one", kind=nn.Conv2d, options=conv, input_shape=(1, 12, 8, 8), dtype=dtype))
    if methods.get(name).supports(case.info) is None:
        return case
    linear = {"in_features": 12, "out_features": 16}
    return Subject.of(LayerCase(id="one", kind=nn.Linear, options=linear, input_shape=(1, 12), dtype=dtype))


class Nothing:
    def error(self, ranks: tuple[int, ...]) -> float:
        return 0.0

    def factorize(self, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        return ()


def given(
    method: Method, weight: Tensor, layer: LayerInfo, moments: Moments | None, *, adaptive: bool, balanced: bool = False
) -> Tensor:
    """Return the weight as the method gets to see it."""
    seen: list[Tensor] = []

    class Spy:
        name = method.name

        def supports(self, layer: LayerInfo) -> str | None:
            return None

        def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Nothing:
            seen.append(weight)
            return Nothing()

    spy: Any = Spy()
    spy.adaptive, spy.balanced = adaptive, balanced
    methods.prepare(spy, weight, layer, moments)
    return seen[0]


@pytest.mark.parametrize(
    ("dtype", "adaptive", "data", "expected"),
    [
        (torch.float32, True, False, torch.float32),
        (torch.float16, True, False, torch.float32),
        (torch.bfloat16, True, False, torch.float32),
        (torch.float64, True, False, torch.float64),
        (torch.float32, True, True, torch.float64),  # whitening needs it
        (torch.float32, False, False, torch.float64),
        (torch.float16, False, False, torch.float64),
    ],
)
def test_methods_get_the_precision_they_can_work_with(
    dtype: torch.dtype, adaptive: bool, data: bool, expected: torch.dtype
) -> None:
    case = subject("svd", torch.float32)
    moments = Moments(channel=torch.eye(12)[None], patch=None, count=1) if data else None
    seen = given(methods.get("svd"), case.weight.to(dtype), case.info, moments, adaptive=adaptive)
    assert seen.dtype == expected
    assert float(seen.abs().max()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scale", "harmless"), [(1e-30, False), (1e-4, False), (0.1, True), (9.0, True), (1e30, False)]
)
@pytest.mark.parametrize("balanced", [True, False])
def test_harmless_weights_of_balanced_methods_are_not_scaled(scale: float, harmless: bool, balanced: bool) -> None:
    case = subject("svd")
    weight = case.weight / case.weight.abs().max() * scale
    seen = given(methods.get("svd"), weight, case.info, None, adaptive=True, balanced=balanced)
    assert float(seen.abs().max()) == pytest.approx(scale if harmless and balanced else 1.0)
    assert torch.equal(seen[0], weight) == (harmless and balanced)


@pytest.mark.parametrize("name", methods.registry.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_memory_of_their_own(name: str, dtype: torch.dtype) -> None:
    """A change of factors reaches neither the weight nor what a layer's preparation keeps."""
    case, method = subject(name, dtype), methods.get(name)
    limits, weight = method.max_ranks(case.info), case.weight.clone()
    (small,) = sample_ranks(method, case.info, count=1)
    prepared = methods.prepare(method, weight, case.info)
    for ranks in (small, limits):
        found = prepared.factorize(ranks)
        expected = [factor.clone() for factor in found]
        for factor in found:
            assert factor.untyped_storage().nbytes() == factor.nbytes  # nor does saving a factor save more
            factor.zero_()
        for a, b in zip(expected, prepared.factorize(ranks), strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(weight, case.weight)


@pytest.mark.parametrize("name", methods.registry.names())
def test_autocast_around_it_changes_nothing(name: str) -> None:
    """Errors and factors are computed when they are asked for, which may be inside of a training step's autocast."""
    case, method = subject(name), methods.get(name)
    (ranks,) = sample_ranks(method, case.info, count=1)
    outside = methods.prepare(method, case.weight, case.info)
    expected = outside.factorize(ranks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (case.weight.flatten(1) @ case.weight.flatten(1).mT).dtype == torch.bfloat16  # it would have an effect
        inside = methods.prepare(method, case.weight, case.info)
        found, error = inside.factorize(ranks), inside.error(ranks)
    assert error == outside.error(ranks)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", methods.registry.names())
def test_factors_carry_no_graph(name: str) -> None:
    case, method = subject(name), methods.get(name)
    (ranks,) = sample_ranks(method, case.info, count=1)
    prepared = methods.prepare(method, case.weight.requires_grad_(), case.info)
    assert not any(factor.requires_grad for factor in prepared.factorize(ranks))


@pytest.mark.parametrize("name", methods.registry.names())
def test_the_order_of_questions_does_not_matter(name: str) -> None:
    """Spectra and bases are found when needed; what was asked before changes no answer."""
    case, method = subject(name), methods.get(name)
    grid = sample_ranks(method, case.info, count=3)
    first = methods.prepare(method, case.weight, case.info)
    errors = [first.error(ranks) for ranks in grid]
    after = [first.factorize(ranks) for ranks in grid]
    second = methods.prepare(method, case.weight, case.info)
    alone = [second.factorize(ranks) for ranks in reversed(grid)][::-1]
    assert [second.error(ranks) for ranks in grid] == errors
    for ranks, one, other in zip(grid, after, alone, strict=True):
        weights = [case.built(method, ranks, factors, dtype=torch.float64).weight for factors in (one, other)]
        assert relative_error(weights[1], weights[0]) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(value: float) -> None:
    case = subject("svd")
    weight = case.weight.clone()
    weight[0, 0] = value
    bad = weight[0, 0].numel()
    with pytest.raises(InvalidWeight, match=rf"{bad} NaN or infinite"):
        methods.prepare(methods.get("svd"), weight, case.info)


@pytest.mark.parametrize("name", ["svd", "qr", "tucker", "cp"])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_products_do_not_reach_the_factors(name: str, precision: str) -> None:
    case, method = subject(name), methods.get(name)
    (ranks,) = sample_ranks(method, case.info, count=1)
    torch.set_float32_matmul_precision(precision)
    try:
        prepared = methods.prepare(method, case.weight.float(), case.info)
        error, factors = prepared.error(ranks), prepared.factorize(ranks)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(factor.dtype == torch.float64 for factor in factors)
    exact = methods.prepare(method, case.weight.float().double(), case.info)
    assert error == pytest.approx(exact.error(ranks), abs=1e-6)
