"""Checks that what cannot be done is refused, with the layer's name and what to do."""

from __future__ import annotations

import torch

from rankfold import methods
from rankfold.errors import InvalidWeight, RankError, UnsupportedLayer
from rankfold.methods import Method
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import NAME, Subject, expect


def bad_ranks_are_refused(method: Method, case: LayerCase) -> None:
    """Ranks that are 0, negative, too large, too many or too few raise `RankError` naming layer and limits."""
    info = Subject.of(case).info
    limits = method.max_ranks(info)
    bad: list[tuple[object, ...]] = [(*limits, 1), limits[:-1]]
    for position in range(len(limits)):
        for value in (0, -1, limits[position] + 1, 1.0, True):
            bad.append((*limits[:position], value, *limits[position + 1 :]))
    for ranks in bad:
        try:
            methods.check_ranks(method, info, ranks)  # type: ignore[arg-type]
        except RankError as error:
            text = str(error)
            for word in (NAME, method.name, *map(str, limits)):
                expect(word in text, f"ranks {ranks}: the message does not say {word!r}: {text}")
        else:
            raise AssertionError(f"ranks {ranks} are accepted, the limits are {limits}")
    methods.check_ranks(method, info, limits)
    methods.check_ranks(method, info, (1,) * len(limits))


def broken_weights_are_refused(method: Method, case: LayerCase) -> None:
    """NaN and infinity raise `InvalidWeight`, and so does a weight of another shape; the message names the layer."""
    subject = Subject.of(case)
    for value in (float("nan"), float("inf"), -float("inf")):
        weight = subject.weight.clone()
        weight[(-1,) * weight.ndim] = value
        _refuses_weight(method, subject, weight, f"a weight with {value}")
    _refuses_weight(method, subject, torch.ones(*subject.weight.shape, 1), "a weight of another shape")


def _refuses_weight(method: Method, subject: Subject, weight: torch.Tensor, words: str) -> None:
    try:
        methods.prepare(method, weight, subject.info)
    except InvalidWeight as error:
        expect(NAME in str(error), f"{words}: the message does not name the layer: {error}")
    else:
        raise AssertionError(f"{words} is accepted")


def unsupported_layers_are_refused(method: Method, case: LayerCase) -> None:
    """A layer that the method does not support raises `UnsupportedLayer` with the reason; nothing else happens."""
    subject = Subject.of(case)
    expect(bool(method.supports(subject.info)), "supports() gives no reason")
    reason = subject.info.skip or method.supports(subject.info)  # the inventory's reason comes first
    try:
        methods.prepare(method, subject.weight, subject.info)
    except UnsupportedLayer as error:
        text = str(error)
        for word in (NAME, method.name, str(reason)):
            expect(word in text, f"the message does not say {word!r}: {text}")
    else:
        raise AssertionError("the layer is factored although supports() refuses it")
