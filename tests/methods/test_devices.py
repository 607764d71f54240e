"""On every device a method finds the same factors as on the CPU, up to signs, order and rotations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.factor.linalg import NO_DOUBLE
from rankfold.factor.moments import Moments
from rankfold.testing import LayerCase
from rankfold.testing.subject import Subject, relative_error, sample_ranks

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")

ITERATIVE = ("cp", "filterwise_cp")
"""Methods that end in local optima: on another device another one, of about the same error."""


def subject(name: str, dtype: torch.dtype) -> Subject:
    """Return a layer whose singular values are well apart, so that bases are unique."""
    if methods.get(name).supports(_conv(dtype).info) is None:
        case = _conv(dtype)
    else:
        options = {"in_features": 24, "out_features": 20}
        case = Subject.of(LayerCase(id="one", kind=nn.Linear, options=options, input_shape=(4, 24), dtype=dtype))
    shape = case.weight.shape
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mode in (0, 1):
        fall = torch.logspace(0, -2, shape[mode], dtype=torch.float64)
        values = (values.movedim(mode, -1) * fall).movedim(-1, mode)
    case.set_weight(values)
    return case


def _conv(dtype: torch.dtype) -> Subject:
    options = {"in_channels": 24, "out_channels": 20, "kernel_size": 3, "padding": 1}
    return Subject.of(LayerCase(id="one", kind=nn.Conv2d, options=options, input_shape=(2, 24, 9, 8), dtype=dtype))


def same(case: Subject, name: str, device: str, moments: Moments | None = None) -> None:
    """Compare predictions, composed weights and the factors' singular values of a device with the CPU's."""
    method = methods.get(name)
    tolerance = 1e-9 if case.weight.dtype == torch.float64 else 1e-4
    here = methods.prepare(method, case.weight, case.info, moments)
    there = methods.prepare(method, case.weight.to(device), case.info, moments)
    for ranks in sample_ranks(method, case.info, count=4):
        factors = here.factorize(ranks), there.factorize(ranks)
        assert {f.device.type for f in factors[1]} == {"cpu" if device in NO_DOUBLE else device}
        back = tuple(f.cpu() for f in factors[1])
        dense = [case.built(method, ranks, f, dtype=torch.float64).weight for f in (factors[0], back)]
        if name in ITERATIVE:
            errors = [relative_error(d, case.weight) for d in dense]
            assert errors[1] == pytest.approx(errors[0], abs=0.02)
            continue
        assert there.error(ranks) == pytest.approx(here.error(ranks), abs=1e-8)
        assert relative_error(dense[1], dense[0]) < tolerance
        for a, b in zip(factors[0], back, strict=True):
            assert spectrum(a) == pytest.approx(spectrum(b), rel=0, abs=10 * tolerance * max(spectrum(a)))


def spectrum(factor: Tensor) -> list[float]:
    """Return singular values, which signs, order and rotations leave alone."""
    return torch.linalg.svdvals(factor.double().flatten(1)).tolist()


@gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", methods.registry.names())
def test_cuda_finds_the_same_factors(name: str, dtype: torch.dtype) -> None:
    same(subject(name, dtype), name, "cuda")


@gpu
@needs_cuda
@pytest.mark.parametrize("name", methods.registry.names())
def test_cuda_finds_the_same_factors_for_data(name: str) -> None:
    case = subject(name, torch.float64)
    n = case.info.group_in
    moments = Moments(channel=torch.logspace(0, -2, n, dtype=torch.float64).diag()[None], patch=None, count=n)
    same(case, name, "cuda", moments)


@gpu
@needs_mps
@pytest.mark.parametrize("name", methods.registry.names())
def test_weights_of_a_device_without_float64_are_factored_on_the_cpu(name: str) -> None:
    same(subject(name, torch.float32), name, "mps")


@pytest.mark.parametrize("name", methods.registry.names())
def test_where_a_device_has_no_float64_nothing_else_is_asked_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door takes one copy of the weight, to the CPU, and that is all (meta tensors cannot be computed with)."""
    monkeypatch.setattr("rankfold.methods.contract.NO_DOUBLE", ("meta",))
    case, method = subject(name, torch.float32), methods.get(name)
    copied: list[torch.device] = []

    def copy(tensor: Tensor) -> Tensor:
        copied.append(tensor.device)
        return case.weight

    monkeypatch.setattr(Tensor, "cpu", copy)
    (ranks,) = sample_ranks(method, case.info, count=1)
    prepared = methods.prepare(method, case.weight.to("meta"), case.info)
    assert copied == [torch.device("meta")]
    expected = methods.prepare(method, case.weight, case.info).factorize(ranks)
    assert all(torch.equal(a, b) for a, b in zip(prepared.factorize(ranks), expected, strict=True))


@pytest.mark.parametrize("name", [name for name in methods.registry.names() if name not in ITERATIVE])
def test_the_comparison_holds_on_one_device_and_can_fail(name: str) -> None:
    """What the tests above compare, where there is no other device: CPU against CPU, and against another weight."""
    case = subject(name, torch.float64)
    same(case, name, "cpu")
    method = methods.get(name)
    (ranks,) = sample_ranks(method, case.info, count=1)
    one = methods.prepare(method, case.weight, case.info).factorize(ranks)
    other = methods.prepare(method, case.weight.flip(0) + 0.1 * case.weight, case.info).factorize(ranks)
    assert any(spectrum(a) != pytest.approx(spectrum(b), rel=1e-3) for a, b in zip(one, other, strict=True))
