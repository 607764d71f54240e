"""The contract over every registered criterion and layers of every kind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rankfold import criteria
from rankfold.criteria import Criterion, Filters
from rankfold.errors import ConfigError, UnknownNameError
from rankfold.testing import LAYER_ZOO, LayerCase, check_criterion, criterion_checks

CASE = next(case for case in LAYER_ZOO if case.id == "conv2d")
KINDS = (
    "conv1d-groups", "conv2d", "conv2d-groups", "conv2d-depthwise", "conv2d-1x1", "conv2d-bfloat16", "conv2d-one-one",
    "conv2d-transposed-groups", "conv3d-1x3x3", "linear",
)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in LAYER_ZOO if case.id in KINDS])
@pytest.mark.parametrize("name", criteria.registry.names())
def test_contract(name: str, case: LayerCase) -> None:
    check_criterion(name, cases=[case])


def test_every_criterion_meets_every_check() -> None:
    ids = [check_id for check_id, _ in criterion_checks()]
    assert len(set(ids)) == len(ids) == 5 * len(LAYER_ZOO) * 7
    assert {i.split("-")[0] for i in ids} == set(criteria.registry.names())
    assert set(KINDS) <= {case.id for case in LAYER_ZOO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Criterion):
    """L1, with one thing broken."""

    name = "broken"

    how: str

    def scores(self, filters: Filters) -> Tensor:
        scores = filters.flat.abs().sum(1)
        match self.how:
            case "sign":
                return -scores
            case "dtype":
                return scores.float()
            case "count":
                return scores[1:]
            case "nan":
                return scores / scores
            case "global generator":
                torch.rand(1)
                return scores
            case "hidden seed":
                return torch.randperm(len(scores), generator=torch.Generator().manual_seed(filters.seed)).double()
            case "position":
                return torch.arange(len(scores)).double()
            case _:
                return scores


BREAKS = {
    "sign": "scores_are_valid",
    "dtype": "scores_are_valid",
    "count": "scores_are_valid",
    "nan": "scores_are_valid",
    "global generator": "scores_are_valid",
    "hidden seed": "same_scores_twice",
    "position": "filters_are_compared_by_content",
}


@pytest.mark.parametrize("how", [*BREAKS, "nothing"])
def test_each_check_fails_on_what_it_is_there_to_find(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria.registry, "_entries", dict(criteria.registry._entries))
    criteria.registry.register(Broken, summary="for this test")
    failed = set[str]()
    for name, check in criterion_checks(Broken(how=how), cases=[CASE]):
        try:
            check()
        except (AssertionError, RuntimeError):
            failed.add(name.rpartition("-")[2])
    assert failed >= {BREAKS[how]} if how in BREAKS else not failed


def test_an_unknown_criterion_is_refused_with_the_names() -> None:
    with pytest.raises(UnknownNameError, match="criterion.*'pbas'.*pabs"):
        criteria.get("pbas")
    with pytest.raises(ConfigError, match="Got the class instead"):
        criteria.get(criteria.PABS)
