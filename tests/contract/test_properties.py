"""Properties of every method on layers drawn at random: shapes, strides, groups, data types, ranks, scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold import methods
from rankfold.cost import blueprint_cost
from rankfold.factor.moments import Moments
from rankfold.methods import Method
from rankfold.records import Ranks
from rankfold.testing import LayerCase
from rankfold.testing.accuracy import measured_error
from rankfold.testing.gauge import GaugedMethod
from rankfold.testing.subject import ERROR_SLACK, OUTPUT_TOLERANCE, Subject, count_macs, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

NAMES = methods.registry.names()
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16)


@st.composite
def convolutions(draw: st.DrawFn, kernels: tuple[int, int] = (1, 4), dimensions: tuple[int, int] = (1, 3)) -> LayerCase:
    dims = draw(st.integers(*dimensions))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    transposed = draw(st.booleans()) and draw(st.booleans())

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = (
        sizes(kernels[0], kernels[1] if dims < 3 else min(kernels[1], 3)),
        sizes(1, 3),
        sizes(1, 2),
    )
    options: dict[str, object] = {
        "in_channels": groups * draw(st.integers(1 if groups == 1 else 2, 6)),  # not depthwise
        "out_channels": groups * draw(st.integers(1, 6)),
        "kernel_size": kernel,
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": dilation,
    }
    if transposed:
        options |= {"stride": stride, "padding": tuple(min(1, k - 1) for k in kernel)}
        limits = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, limit)) for limit in limits)
    else:
        padding = draw(st.sampled_from(["same", "valid", "numbers", "numbers"]))
        options["padding"] = sizes(0, 2) if padding == "numbers" else padding
        options["stride"] = (1,) * dims if padding == "same" else stride
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    extent = tuple(d * (k - 1) + draw(st.integers(3, 5)) for k, d in zip(kernel, dilation, strict=True))
    # Where a stride leaves gaps, torch's bfloat16 kernels for some processors forget the bias in them (oneDNN's).
    gaps = transposed and any(s > d * (k - 1) + 1 for s, k, d in zip(stride, kernel, dilation, strict=True))
    dtypes = [dtype for dtype in DTYPES if not (gaps and dtype == torch.bfloat16)]
    return LayerCase(
        id="drawn",
        kind=(TRANSPOSED if transposed else CONVS)[dims - 1],
        options=options,
        input_shape=(draw(st.integers(1, 2)), int(str(options["in_channels"])), *extent),
        dtype=draw(st.sampled_from(dtypes)),
    )


@st.composite
def linears(draw: st.DrawFn) -> LayerCase:
    features, leading = draw(st.integers(1, 24)), draw(st.lists(st.integers(1, 3), max_size=3))
    return LayerCase(
        id="drawn",
        kind=nn.Linear,
        options={"in_features": features, "out_features": draw(st.integers(1, 24)), "bias": draw(st.booleans())},
        input_shape=(*leading, features),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def layers(name: str) -> st.SearchStrategy[LayerCase]:
    """Return layers of the kind that a method is for."""
    if name == "ttm":
        return linears()
    if name == "qr":
        return st.one_of(linears(), convolutions(kernels=(1, 1)))
    if name == "spatial_svd":
        return convolutions(kernels=(2, 4), dimensions=(2, 2))
    return st.one_of(linears(), convolutions()) if name == "svd" else convolutions()


def supported(name: str, case: LayerCase) -> tuple[Method, Subject]:
    method, subject = methods.get(name), Subject.of(case)
    assume(method.supports(subject.info) is None and subject.info.skip is None)
    return method, subject


def draw_ranks(data: st.DataObject, method: Method, subject: Subject) -> Ranks:
    return tuple(data.draw(st.integers(1, limit), label="rank") for limit in method.max_ranks(subject.info))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_cost_and_full_rank(name: str, data: st.DataObject) -> None:
    """What the blueprint costs is what the module costs, at any rank; at full rank the module is the layer."""
    method, subject = supported(name, data.draw(layers(name), label="layer"))
    ranks = draw_ranks(data, method, subject)
    blueprint = method.blueprint(subject.info, ranks)
    module = subject.random(method, ranks)
    cost = blueprint_cost(blueprint, subject.info)
    assert cost.params == sum(p.numel() for p in module.parameters())
    assert cost.macs == count_macs(module, subject.input)
    with torch.no_grad():
        whole = subject.factored(method, method.max_ranks(subject.info))(subject.input)
    assert relative_error(whole, subject.exact_output()) <= OUTPUT_TOLERANCE[subject.case.dtype]


@pytest.mark.parametrize("name", ["svd", "qr", "tucker", "tt", "spatial_svd"])
@settings(max_examples=60)
@given(data=st.data())
def test_gauged_at_any_rank(name: str, data: st.DataObject) -> None:
    """Gauged factors of random layers compute what plain ones do, and cost what their blueprint says."""
    method, subject = supported(name, data.draw(layers(name), label="layer"))
    ranks = draw_ranks(data, method, subject)
    gauged = GaugedMethod(method)
    blueprint = gauged.blueprint(subject.info, ranks)
    assume(blueprint.gauged)
    weight = subject.weight.double()
    if data.draw(st.booleans(), label="rank-deficient"):
        half = weight.shape[0] // 2
        weight[half : 2 * half] = weight[:half].clone()
    factors = methods.prepare(method, weight, subject.info).factorize(ranks)
    plain, small = (subject.built(m, ranks, factors, dtype=torch.float64) for m in (method, gauged))
    x = subject.input.double()
    with torch.no_grad():
        assert relative_error(small(x), plain(x)) <= OUTPUT_TOLERANCE[torch.float64]
    assert relative_error(small.weight, plain.weight) <= OUTPUT_TOLERANCE[torch.float64]
    saved = sum(spec.groups * spec.rank**2 for spec in blueprint.gauged)
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in small.parameters()) == saved
    cost = blueprint_cost(blueprint, subject.info)
    assert (cost.params, cost.macs) == (sum(p.numel() for p in small.parameters()), count_macs(small, x))


CHEAP = {"iterations": 3}
"""Options of the iterative methods: the properties hold after any number of sweeps."""


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_prediction_at_any_rank_and_scale(name: str, data: st.DataObject) -> None:
    """The achieved error is at most the predicted one, which falls with the rank; scale and order change nothing."""
    case = data.draw(layers(name), label="layer")
    _, subject = supported(name, case)
    method = methods.get(name, CHEAP if "cp" in name else None)
    dense = subject.weight.double()
    if data.draw(st.booleans(), label="rank-deficient"):
        dense[dense.shape[0] // 2 :] = 0
    scale = 2.0 ** data.draw(st.integers(-60, 60), label="log2 of the scale")
    ranks = draw_ranks(data, method, subject)
    prepared = methods.prepare(method, dense * scale, subject.info)
    predicted = prepared.error(ranks)
    module = subject.built(method, ranks, prepared.factorize(ranks), dtype=torch.float64)
    subject.module.double()
    subject.set_weight(dense)
    assert measured_error(module.weight / scale, subject, None) <= predicted + ERROR_SLACK

    for position, limit in enumerate(method.max_ranks(subject.info)):
        if ranks[position] < limit:
            more = (*ranks[:position], ranks[position] + 1, *ranks[position + 1 :])
            assert prepared.error(more) <= predicted + 1e-12

    unscaled = methods.prepare(method, dense, subject.info)
    assert unscaled.error(ranks) == pytest.approx(predicted, abs=ERROR_SLACK)
    if name != "ttm":  # which splits the channels into factors
        shuffled = methods.prepare(method, _shuffled(dense, subject), subject.info)
        assert shuffled.error(ranks) == pytest.approx(predicted, abs=ERROR_SLACK)


def _shuffled(weight: Tensor, subject: Subject) -> Tensor:
    """Permute output and input channels, within the groups."""
    info = subject.info
    generator = torch.Generator().manual_seed(1)
    canonical = methods.to_canonical(weight, info)
    canonical = canonical[:, torch.randperm(info.group_out, generator=generator)]
    canonical = canonical[:, :, torch.randperm(info.group_in, generator=generator)]
    if info.transposed:
        canonical = canonical.movedim(1, 2)
    return canonical.reshape(info.weight_shape)


@pytest.mark.parametrize("name", ["svd", "tucker", "tt3"])
@given(data=st.data())
def test_rotating_the_channels_changes_nothing(name: str, data: st.DataObject) -> None:
    """An orthogonal rotation of the outputs or of the inputs keeps the error of every rank."""
    method, subject = supported(name, data.draw(layers(name), label="layer"))
    info = subject.info
    assume(not info.transposed)
    canonical = methods.to_canonical(subject.weight.double(), info)
    flat = canonical.flatten(3) if canonical.ndim > 3 else canonical.unsqueeze(-1)
    rotated = torch.einsum("goik,op,ij->gpjk", flat, _rotation(info.group_out, 0), _rotation(info.group_in, 1))
    ranks = draw_ranks(data, method, subject)
    before = methods.prepare(method, subject.weight, info).error(ranks)
    after = methods.prepare(method, rotated.reshape(info.weight_shape), info).error(ranks)
    assert after == pytest.approx(before, abs=ERROR_SLACK)


def _rotation(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("name", ["svd", "qr", "tucker", "cp", "tt", "spatial_svd"])
@given(data=st.data())
def test_full_rank_with_any_moments(name: str, data: st.DataObject) -> None:
    """Whatever the data's second moment, singular ones included, full rank is exact and errors lie in 0..1."""
    _, subject = supported(name, data.draw(layers(name), label="layer"))
    method, info = methods.get(name, CHEAP if name == "cp" else None), subject.info
    n = info.group_in
    samples = data.draw(st.integers(1, 2 * n), label="samples")  # fewer than n: a singular moment
    energy = 10.0 ** data.draw(st.integers(-6, 6), label="log10 of the inputs' size")
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(info.groups, n, samples, generator=generator, dtype=torch.float64) * energy
    prepared = methods.prepare(method, subject.weight, info, Moments(channel=x @ x.mT, patch=None, count=samples))
    top = method.max_ranks(info)
    module = subject.built(method, top, prepared.factorize(top), dtype=torch.float64)
    # Un-whitening a singular moment divides by a thousandth of its largest direction.
    assert relative_error(module.weight, subject.weight) <= 1e-8
    ranks = draw_ranks(data, method, subject)
    error = prepared.error(ranks)
    assert math.isfinite(error)
    assert prepared.error(top) - 1e-12 <= error <= 1
