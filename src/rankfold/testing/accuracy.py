"""Checks of the predicted error: the built layer does not exceed it, and it never grows with a rank."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rankfold import methods
from rankfold.factor.moments import Moments, output_energy
from rankfold.methods import Method
from rankfold.records import LayerInfo
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import (
    ERROR_SLACK,
    OUTPUT_TOLERANCE,
    Subject,
    expect,
    neighbors,
    relative_error,
    sample_ranks,
)


def error_never_grows_with_a_rank(method: Method, case: LayerCase) -> None:
    """The predicted error lies in 0..1, never grows with any rank, and is 0 at full rank; with and without moments."""
    subject = Subject.of(case)
    for moments in (None, geometric_moments(subject.info), geometric_moments(subject.info, patch=True)):
        prepared = methods.prepare(method, subject.weight, subject.info, moments)
        for lower, higher in neighbors(method, subject.info):
            low, high = prepared.error(lower), prepared.error(higher)
            expect(0 <= low <= 1 and 0 <= high <= 1, f"ranks {lower}, {higher}: errors {low}, {high} not in 0..1")
            expect(high <= low + 1e-12, f"the error grows from {low!r} at {lower} to {high!r} at {higher}")
        full = prepared.error(method.max_ranks(subject.info))
        expect(full <= ERROR_SLACK, f"the error at full rank is {full:.1e}, expected 0")


def prediction_is_kept(method: Method, case: LayerCase) -> None:
    """The error of the built layer, measured on its weight, is at most the predicted one, with and without moments."""
    subject = Subject.of(case)
    of_data = (geometric_moments(subject.info), geometric_moments(subject.info, patch=True))
    if of_data[1].patch is None:  # both are the same
        of_data = of_data[:1]
    for moments, count in ((None, 3), *((moments, 1) for moments in of_data)):
        prepared = methods.prepare(method, subject.weight, subject.info, moments)
        for ranks in sample_ranks(method, subject.info, count=count):
            module = subject.built(method, ranks, prepared.factorize(ranks), dtype=torch.float64)
            achieved = measured_error(module.weight, subject, moments)
            predicted = prepared.error(ranks)
            where = f"ranks {ranks}{' with moments' if moments else ''}"
            kept = achieved <= predicted + ERROR_SLACK
            expect(kept, f"{where}: predicted {predicted:.6f}, achieved {achieved:.6f}")


def moments_change_only_the_metric(method: Method, case: LayerCase) -> None:
    """With moments, full rank is exact as well; white moments give the same errors as the weight alone."""
    subject = Subject.of(case)
    top = method.max_ranks(subject.info)
    expected, tolerance = subject.exact_output(), OUTPUT_TOLERANCE[case.dtype]
    for patch in (False, True):
        module = subject.factored(method, top, moments=geometric_moments(subject.info, patch=patch))
        with torch.no_grad():
            error = relative_error(module(subject.input), expected)
        expect(error <= tolerance, f"full rank with moments: the output is off by {error:.1e}, allowed {tolerance:.0e}")
    plain = methods.prepare(method, subject.weight, subject.info)
    white = methods.prepare(method, subject.weight, subject.info, white_moments(subject.info))
    for ranks in sample_ranks(method, subject.info, count=4):
        a, b = plain.error(ranks), white.error(ranks)
        expect(abs(a - b) <= ERROR_SLACK, f"ranks {ranks}: error {a:.8f} without moments, {b:.8f} with white ones")


def scale_does_not_matter(method: Method, case: LayerCase) -> None:
    """Scaling the weight does not change the relative error."""
    subject = Subject.of(case)
    scaled = subject.weight.double() * 2.0**-40
    one = methods.prepare(method, subject.weight, subject.info)
    other = methods.prepare(method, scaled, subject.info)
    for ranks in sample_ranks(method, subject.info, count=4):
        a, b = one.error(ranks), other.error(ranks)
        expect(abs(a - b) <= ERROR_SLACK, f"ranks {ranks}: error {a:.8f}, after scaling {b:.8f}")


def measured_error(weight: Tensor, subject: Subject, moments: Moments | None) -> float:
    """Return the relative error of an approximated weight, in the metric of the moments if given."""
    dense = methods.to_canonical(subject.weight.double(), subject.info)
    approximation = methods.to_canonical(weight.detach().double(), subject.info)
    total, left = (float(output_energy(w, moments)) for w in (dense, approximation - dense))
    if not math.isfinite(left):
        return math.inf
    return math.sqrt(max(0.0, left) / total) if total > 0 else 0.0


@lru_cache(maxsize=4)
def geometric_moments(info: LayerInfo, *, patch: bool = False) -> Moments:
    """Return moments of independent inputs whose energies decrease geometrically from 1 to 1/1000.

    A geometric sequence is a Kronecker product in every mixed radix, and with independent positions so is the patch
    moment (`patch`, for layers that can have one). Methods that split the channels into factors, or use only the
    channel moment, therefore need no approximation.
    """
    n, k = info.group_in, info.kernel_numel
    channel = torch.logspace(0, -3, n, dtype=torch.float64).diag()
    whole = torch.kron(channel, torch.eye(k, dtype=torch.float64))
    return Moments(
        channel=channel.expand(info.groups, n, n).clone(),
        patch=whole.expand(info.groups, n * k, n * k).clone() if patch and k > 1 and not info.transposed else None,
        count=n,
    )


def white_moments(info: LayerInfo) -> Moments:
    """Return the moments of white inputs with variance 3."""
    eye = 3 * torch.eye(info.group_in, dtype=torch.float64)
    return Moments(channel=eye.expand(info.groups, *eye.shape).clone(), patch=None, count=info.group_in)
