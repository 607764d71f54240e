"""Checks that impossible requests are refused, with messages that name the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from rankfold import methods
from rankfold.errors import InvalidWeight, RankError, UnsupportedLayer
from rankfold.methods import Method
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import NAME, Subject, expect


def bad_ranks_are_refused(method: Method, case: LayerCase) -> None:
    """Ranks that are 0, negative, too large, too many or too few raise `RankError` with the layer and the limits."""
    info = Subject.of(case).info
    limits = method.max_ranks(info)
    bad: list[tuple[object, ...]] = [(*limits, 1), limits[:-1]]
    for position in range(len(limits)):
        for value in (0, -1, limits[position] + 1, 1.0, True):
            bad.append((*limits[:position], value, *limits[position + 1 :]))
    words = (NAME, method.name, *map(str, limits))
    for ranks in bad:
        check = partial(methods.check_ranks, method, info, ranks)  # type: ignore[arg-type]
        _expect_refusal(RankError, check, words, f"ranks {ranks} (limits {limits})")
    methods.check_ranks(method, info, limits)
    methods.check_ranks(method, info, (1,) * len(limits))


def broken_weights_are_refused(method: Method, case: LayerCase) -> None:
    """NaN, infinity and a weight of another shape raise `InvalidWeight` with the layer."""
    subject = Subject.of(case)
    broken = {"a weight of another shape": torch.ones(*subject.weight.shape, 1)}
    for value in (float("nan"), float("inf"), -float("inf")):
        weight = broken[f"a weight with {value}"] = subject.weight.clone()
        weight[(-1,) * weight.ndim] = value
    for what, weight in broken.items():
        _expect_refusal(InvalidWeight, partial(methods.prepare, method, weight, subject.info), (NAME,), what)


def unsupported_layers_are_refused(method: Method, case: LayerCase) -> None:
    """A layer that the method does not support raises `UnsupportedLayer` with the reason."""
    subject = Subject.of(case)
    expect(bool(method.supports(subject.info)), "supports() gives no reason")
    reason = subject.info.skip or method.supports(subject.info)  # the inventory's reason comes first
    prepare = partial(methods.prepare, method, subject.weight, subject.info)
    words = (NAME, method.name, str(reason))
    _expect_refusal(UnsupportedLayer, prepare, words, "a layer that supports() refuses")


def _expect_refusal(kind: type[Exception], call: Callable[[], object], words: Iterable[str], what: str) -> None:
    """Expect an error whose message contains the words."""
    try:
        call()
    except kind as error:
        for word in words:
            expect(word in str(error), f"{what}: the message does not contain {word!r}: {error}")
    else:
        raise AssertionError(f"{what}: accepted, expected {kind.__name__}")
