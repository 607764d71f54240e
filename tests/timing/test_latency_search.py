"""The correction loop on made-up models: limits go in, times come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rankfold.api.latency import CLOSE, MOST, LatencySearch, LatencyTrial, TimedPlan
from rankfold.errors import InfeasibleBudget
from rankfold.records import Choice, Plan

DENSE = 1_000_000


def search(
    time: Callable[[int], float], limit: int, *, bounded: bool = True, least: int = 0, step: int = 1000
) -> tuple[TimedPlan, LatencySearch]:
    """Run the search where a plan with the predicted time `p` takes `time(p)`, in steps of predicted time."""

    def solve(at: int | None) -> Plan:
        predicted = DENSE if at is None else at // step * step
        if predicted < least:
            raise InfeasibleBudget("too low", [("latency", at or 0, least, DENSE)])
        return Plan(layers={"a": Choice(method="svd", ranks=(predicted,))})

    def predict(plan: Plan) -> int:
        return plan.layers["a"].ranks[0]

    searching = LatencySearch(
        solve=solve, predict=predict, measure=lambda plan: round(time(predict(plan))), limit=limit, dense=DENSE,
        bounded=bounded,
    )  # fmt: skip
    return searching.run(), searching


def test_a_right_prediction_needs_one_model() -> None:
    best, _ = search(lambda p: p, 600_000)
    assert best.trials == (LatencyTrial(limit=600_000, predicted=600_000, measured=600_000),)


@pytest.mark.parametrize("share", [0.7, 0.9, 1.3, 1.6])
@pytest.mark.parametrize("limit", [400_000, 600_000, 800_000])
def test_wrong_savings_are_corrected(share: float, limit: int) -> None:
    best, _ = search(lambda p: DENSE - share * (DENSE - p), limit)
    assert CLOSE * limit <= best.trial.measured <= limit
    assert len(best.trials) <= 3


def test_an_overhead_is_corrected() -> None:
    best, _ = search(lambda p: p + 150_000 * (p < DENSE), 600_000)
    assert CLOSE * 600_000 <= best.trial.measured <= 600_000


def test_coarse_steps_end_the_search() -> None:
    best, searching = search(lambda p: p, 570_000, step=100_000)
    assert best.trial.measured == 500_000
    assert len(searching.trials) <= MOST
    assert len({trial.predicted for trial in searching.trials}) == len(searching.trials), "no model is measured twice"


def test_a_bound_out_of_reach_says_how_low_it_goes() -> None:
    with pytest.raises(InfeasibleBudget, match=r"the fastest of \d+ models tried takes 0\.\d+ ms, 70\.\d% of") as error:
        search(lambda p: p, 500_000, least=700_000)
    ((resource, asked, least, dense),) = error.value.rows
    assert (resource, asked, dense) == ("latency", 500_000, DENSE)
    assert 700_000 <= least <= 710_000


def test_a_pessimistic_prediction_does_not_refuse_what_can_be_reached() -> None:
    best, _ = search(lambda p: DENSE - 2 * (DENSE - p), 500_000, least=700_000)
    assert CLOSE * 500_000 <= best.trial.measured <= 500_000


def test_a_model_slightly_above_the_bound_is_accepted_if_none_is_below() -> None:
    best, _ = search(lambda p: p, 680_000, least=700_000)
    assert 680_000 < best.trial.measured <= 1.05 * 680_000


def test_without_a_bound_the_first_model_that_is_not_slower_is_taken() -> None:
    best, _ = search(lambda p: 0.9 * p, DENSE, bounded=False)
    assert len(best.trials) == 1
    best, _ = search(lambda p: 1.1 * p, DENSE, bounded=False)
    assert best.trial.measured <= DENSE
    with pytest.raises(InfeasibleBudget, match="the fastest of"):
        search(lambda p: DENSE + p, DENSE, bounded=False)


def test_without_a_bound_noise_alone_refuses_no_model() -> None:
    best, _ = search(lambda p: 1.004 * DENSE, DENSE, bounded=False)
    assert best.trial.measured == round(1.004 * DENSE)
    with pytest.raises(InfeasibleBudget, match="the fastest of"):
        search(lambda p: 1.02 * DENSE, DENSE, bounded=False)


def test_other_bounds_that_cannot_be_met_are_reported_as_they_are() -> None:
    with pytest.raises(InfeasibleBudget, match="too low"):
        search(lambda p: p, 500_000, least=DENSE + 1)
