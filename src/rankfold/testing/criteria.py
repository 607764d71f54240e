"""The contract of pruning criteria: every check on every criterion and every layer of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rankfold import criteria
from rankfold.criteria import Criterion, Filters
from rankfold.errors import InvalidWeight
from rankfold.records import LayerInfo
from rankfold.testing.cases import LAYER_ZOO, SEED, LayerCase
from rankfold.testing.subject import NAME, Subject, expect, run_all

CriterionCheck = Callable[[Criterion, LayerCase], None]

RANKS = (1, 3)
"""The ranks of the CP decomposition that the checks try."""


def scores_are_valid(criterion: Criterion, case: LayerCase) -> None:
    """Every filter has a finite, nonnegative score in float64; the weight and torch's generator are not changed."""
    weight, layer = _weight(case)
    for what, values in {"weight": weight, "zeros": torch.zeros_like(weight), "ones": torch.ones_like(weight)}.items():
        before, state = values.clone(), torch.random.get_rng_state()
        scores = _scores(criterion, values, layer)
        expect(scores.shape == (layer.out_channels,), f"{what}: {tuple(scores.shape)} scores of {layer.out_channels}")
        expect(scores.dtype == torch.float64, f"{what}: scores in {scores.dtype}")
        expect(bool(scores.isfinite().all()) and float(scores.min()) >= 0, f"{what}: {scores.tolist()}")
        expect(torch.equal(values, before), f"{what}: the weight was changed")
        expect(torch.equal(state, torch.random.get_rng_state()), "torch's global random generator was used")


def same_scores_twice(criterion: Criterion, case: LayerCase) -> None:
    """The scores depend on the filters and the seed; on the seed only if the criterion says so."""
    weight, layer = _weight(case)
    first = _scores(criterion, weight, layer)
    expect(torch.equal(first, _scores(criterion, weight, layer)), "two results with one seed differ")
    others = [_scores(criterion, weight, layer, seed=seed) for seed in range(SEED + 1, SEED + 4)]
    same = all(torch.equal(first, other) for other in others)
    if layer.out_channels > 3:
        expect(same != criterion.seeded, f"seeded is {criterion.seeded}, but the scores say otherwise")


def scale_does_not_matter(criterion: Criterion, case: LayerCase) -> None:
    """Weights that are a thousand times as large or as small have the same order of removal."""
    weight, layer = _weight(case)
    weight = weight.double()
    first = _order(criterion, weight, layer)
    for power in (-10, 10):
        order = _order(criterion, weight * 2.0**power, layer)
        expect(order == first, f"the order of 2^{power} times the weight differs: {order}, {first}")


def filters_are_compared_by_content(criterion: Criterion, case: LayerCase) -> None:
    """Filters in reverse order, within their groups, have their scores in reverse order."""
    if criterion.seeded:
        return
    weight, layer = _weight(case)
    for rank in RANKS:
        scores = _scores(criterion, weight, layer, rank=rank).unflatten(0, (layer.groups, -1))
        again = _scores(criterion, _reversed(weight, layer), layer, rank=rank).unflatten(0, (layer.groups, -1)).flip(1)
        difference = float((scores - again).abs().max())
        expect(difference <= 1e-9 * float(scores.max()), f"rank {rank}: {scores.tolist()}, reversed {again.tolist()}")


def broken_weights_are_refused(criterion: Criterion, case: LayerCase) -> None:
    """NaN and infinity raise `InvalidWeight` with the layer."""
    weight, layer = _weight(case)
    for value in (float("nan"), float("inf")):
        broken = weight.clone()
        broken[(-1,) * broken.ndim] = value
        try:
            _scores(criterion, broken, layer)
        except InvalidWeight as error:
            expect(NAME in str(error), f"the message does not name the layer: {error}")
        else:
            raise AssertionError(f"a weight with {value} was accepted")


CRITERION_CHECKS: tuple[CriterionCheck, ...] = (
    scores_are_valid,
    same_scores_twice,
    scale_does_not_matter,
    filters_are_compared_by_content,
    broken_weights_are_refused,
)
"""Every check of a criterion."""


def _weight(case: LayerCase) -> tuple[Tensor, LayerInfo]:
    subject = Subject.of(case)
    return subject.weight, subject.info


def _scores(
    criterion: Criterion, weight: Tensor, layer: LayerInfo, *, rank: int = RANKS[0], seed: int = SEED
) -> Tensor:
    return criterion.scores(Filters(weight, layer, rank=rank, seed=seed))


def _order(criterion: Criterion, weight: Tensor, layer: LayerInfo) -> list[int]:
    return _scores(criterion, weight, layer).argsort(stable=True).tolist()


def _reversed(weight: Tensor, layer: LayerInfo) -> Tensor:
    """Return a weight with the filters of each group in reverse order."""
    if layer.transposed:
        return weight.flip(1)
    return weight.unflatten(0, (layer.groups, -1)).flip(1).flatten(0, 1)


def criterion_checks(
    criterion: str | Criterion | None = None, *, cases: Sequence[LayerCase] = LAYER_ZOO
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every check of one criterion, or of all registered ones, as ``(id, callable)``; see `method_checks`."""
    if criterion is None:
        for name in criteria.registry.names():
            yield from criterion_checks(name, cases=cases)
        return
    criterion = criteria.get(criterion)
    for case in cases:
        for check in CRITERION_CHECKS:
            yield f"{criterion.name}-{case.id}-{check.__name__}", partial(check, criterion, case)


def check_criterion(criterion: str | Criterion, *, cases: Sequence[LayerCase] = LAYER_ZOO) -> int:
    """Run every check of one criterion and return their number; raise ``AssertionError`` naming those that failed."""
    return run_all(criterion_checks(criterion, cases=cases))
