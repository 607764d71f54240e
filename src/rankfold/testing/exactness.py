"""Checks that a factored layer computes the right output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rankfold import methods
from rankfold.methods import Method
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import OUTPUT_TOLERANCE, Subject, expect, random_factors, relative_error, sample_ranks


def full_rank_is_exact(method: Method, case: LayerCase) -> None:
    """With the largest ranks the layer's output is reproduced."""
    subject = Subject.of(case)
    ranks = method.max_ranks(subject.info)
    with torch.no_grad():
        actual = subject.factored(method, ranks)(subject.input)
    error, tolerance = relative_error(actual, subject.exact_output()), OUTPUT_TOLERANCE[case.dtype]
    expect(error <= tolerance, f"ranks {ranks}: the output is off by {error:.2e}, allowed {tolerance:.0e}")


def weight_is_what_forward_computes(method: Method, case: LayerCase) -> None:
    """The stock layer with the factored layer's ``weight`` and ``bias`` computes what its stages compute.

    The weight that the factors compose to without a module is the same.
    """
    subject = Subject.of(case)
    subject.module.double()
    x, dense_bias = subject.input.double(), dict(subject.module.named_parameters()).get("bias")
    for ranks in [*sample_ranks(method, subject.info, count=2), method.max_ranks(subject.info)]:
        blueprint, tolerance = method.blueprint(subject.info, ranks), OUTPUT_TOLERANCE[torch.float64]
        factors = random_factors(blueprint)
        module = subject.built(method, ranks, factors, dtype=torch.float64)
        expect((module.bias is None) == (dense_bias is None), f"ranks {ranks}: a bias appeared or was lost")
        with torch.no_grad():
            subject.set_weight(module.weight)
            if dense_bias is not None and module.bias is not None:
                dense_bias.copy_(module.bias)
            error = relative_error(module(x), subject.module(x))
        expect(error <= tolerance, f"ranks {ranks}: .weight and the forward pass differ by {error:.2e}")
        error = relative_error(methods.compose(blueprint, subject.info, factors), module.dense_weight().detach())
        expect(error <= tolerance, f"ranks {ranks}: the composed factors and .weight differ by {error:.2e}")


def output_looks_the_same(method: Method, case: LayerCase) -> None:
    """Shape, data type, device and memory format of the output are the dense layer's."""
    subject = Subject.of(case)
    with torch.no_grad():
        expected = subject.module(subject.input)
        for ranks in [*sample_ranks(method, subject.info, count=1), method.max_ranks(subject.info)]:
            actual = subject.random(method, ranks)(subject.input)
            expect(actual.shape == expected.shape, f"ranks {ranks}: shape {actual.shape}, expected {expected.shape}")
            expect(actual.dtype == expected.dtype, f"ranks {ranks}: {actual.dtype}, expected {expected.dtype}")
            expect(actual.device == expected.device, f"ranks {ranks}: {actual.device}, expected {expected.device}")
            # For volumes, torch's kernels choose the format by size, whatever the input has.
            same = case.memory_format != torch.channels_last or (
                actual.is_contiguous(memory_format=case.memory_format)
                == expected.is_contiguous(memory_format=case.memory_format)
            )
            expect(same, f"ranks {ranks}: strides {actual.stride()}, the dense layer's are {expected.stride()}")


def factors_fill_the_blueprint(method: Method, case: LayerCase) -> None:
    """The factors are finite and have the shapes that the blueprint states."""
    subject = Subject.of(case)
    prepared = methods.prepare(method, subject.weight, subject.info)
    for ranks in [*sample_ranks(method, subject.info, count=2), method.max_ranks(subject.info)]:
        factors = prepared.factorize(ranks)
        shapes, wanted = tuple(tuple(f.shape) for f in factors), method.blueprint(subject.info, ranks).factor_shapes
        expect(shapes == wanted, f"ranks {ranks}: factors of shapes {shapes}, the blueprint states {wanted}")
        expect(all(bool(f.isfinite().all()) for f in factors), f"ranks {ranks}: a factor is not finite")


def special_weights_work(method: Method, case: LayerCase) -> None:
    """Zero, constant, rank-one, huge and tiny weights are reproduced at full rank, the first three at rank one."""
    subject = Subject.of(case)
    top, ones = method.max_ranks(subject.info), (1,) * len(method.max_ranks(subject.info))
    tolerance = OUTPUT_TOLERANCE[case.dtype]
    for words, values, simple in special_weights(subject.weight):
        subject.set_weight(values)
        prepared = methods.prepare(method, subject.weight, subject.info)
        for ranks in (top, ones) if simple else (top,):
            predicted = prepared.error(ranks)
            expect(predicted <= 1e-6, f"{words} weight, ranks {ranks}: predicted error {predicted:.1e}, expected 0")
            module = subject.built(method, ranks, prepared.factorize(ranks))
            finite = all(bool(p.isfinite().all()) for p in module.parameters())
            expect(finite, f"{words} weight, ranks {ranks}: a factor is not finite")
            with torch.no_grad():
                error = relative_error(module(subject.input), subject.exact_output())
            expect(error <= tolerance, f"{words} weight, ranks {ranks}: the output is off by {error:.1e}")


def special_weights(weight: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield a description, the values, and whether the weight has rank one in every unfolding."""
    yield "zero", torch.zeros_like(weight), True
    yield "constant", torch.full_like(weight, 0.3), True
    signs = torch.ones_like(weight)
    for axis, size in enumerate(weight.shape):  # a product of alternating signs: an outer product over all modes
        alternating = 1 - 2 * (torch.arange(size) % 2).to(weight)
        signs = signs * alternating.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    if weight.ndim > 2:  # a TT-matrix splits the modes of a matrix further
        yield "rank-one", signs, True
    half = weight.clone(memory_format=torch.contiguous_format)
    half[weight.shape[0] // 2 :] = half[: weight.shape[0] - weight.shape[0] // 2].clone()
    yield "rank-deficient", half, False
    if weight.dtype != torch.float16:  # its largest value is 65504
        yield "huge", (weight.double() * 1e30).to(weight), False
        yield "tiny", (weight.double() * 1e-30).to(weight), False


def same_bits_twice(method: Method, case: LayerCase) -> None:
    """Factoring is deterministic, does not touch the weight, and does not depend on the order of calls."""
    subject = Subject.of(case)
    before = subject.weight.clone()
    some = sample_ranks(method, subject.info, count=2)
    first = methods.prepare(method, subject.weight, subject.info)
    state = torch.random.get_rng_state()
    forwards = {ranks: (first.error(ranks), first.factorize(ranks)) for ranks in some}
    # Under another name, because what was prepared for this layer may be shared.
    second = methods.prepare(method, subject.weight, replace(subject.info, name="another"))
    for ranks in reversed(some):
        factors = second.factorize(ranks)
        same = all(torch.equal(a, b) for a, b in zip(forwards[ranks][1], factors, strict=True))
        expect(same, f"ranks {ranks}: other factors the second time")
        expect(forwards[ranks][0] == second.error(ranks), f"ranks {ranks}: another error the second time")
    expect(torch.equal(before, subject.weight), "the layer's weight was changed")
    expect(torch.equal(state, torch.random.get_rng_state()), "torch's global random generator was used")
