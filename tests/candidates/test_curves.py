"""What is measured at some candidates, and read off between them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.candidates.curves import anchors, corrected, read_off, representatives
from rankfold.records import Candidate, Cost


def candidate(method: str, params: int, error: float, rank: int = 1) -> Candidate:
    return Candidate(layer="fc", method=method, ranks=(rank,), cost=Cost(params=params), error=error)


ERRORS = st.floats(0, 1) | st.sampled_from([0.0, 1e-12, 0.25, 1.0])
ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), ERRORS), min_size=1, max_size=40).map(
    lambda found: [candidate(*values, rank=i) for i, values in enumerate(found)]
)


def of(row: list[Candidate], method: str) -> list[int]:
    return [i for i, c in enumerate(row) if c.method == method]


@given(row=ROWS, points=st.integers(2, 12))
def test_representatives_lie_on_the_front(row: list[Candidate], points: int) -> None:
    chosen = representatives(row, points)
    assert chosen == representatives(row, points)
    assert len(set(chosen)) == len(chosen)
    for method in {c.method for c in row}:
        members = of(row, method)
        mine = [i for i in chosen if i in members]
        assert 1 <= len(mine) <= points
        for i in mine:
            cheaper = [j for j in members if row[j].cost.params <= row[i].cost.params and j != i]
            assert all(row[j].error >= row[i].error for j in cheaper)
        # The ends of the front are among them: what lies beyond is extrapolated as little as can be.
        least = min(max(row[i].error, 1e-9) for i in members)
        assert min(max(row[i].error, 1e-9) for i in mine) == least
        cheapest = min(members, key=lambda i: (row[i].cost.params, row[i].error))
        assert max(row[i].error for i in mine) == pytest.approx(row[cheapest].error, abs=1e-9)


@given(row=ROWS, points=st.integers(2, 12), data=st.data())
def test_what_is_read_off_grows_with_the_error(row: list[Candidate], points: int, data: st.DataObject) -> None:
    chosen = representatives(row, points)
    values = st.floats(0, 1e6)
    measured = {i: data.draw(values) for i in chosen}
    losses = read_off(row, measured)
    assert len(losses) == len(row)
    for method in {c.method for c in row}:
        members = sorted(of(row, method), key=lambda i: row[i].error)
        assert all(losses[i] == 0 for i in members if row[i].error == 0)
        for a, b in itertools.pairwise(members):
            assert losses[a] <= losses[b] * (1 + 1e-9)
        highest = 0.0
        for i in [i for i in members if i in measured]:
            highest = max(highest, measured[i])
            if row[i].error > 1e-9:
                assert losses[i] == pytest.approx(max(highest, 1e-18), rel=1e-9), "as measured, but for dips"


def test_between_two_it_is_a_power_and_beyond_them_a_square() -> None:
    row = [candidate("svd", 10 - i, error) for i, error in enumerate((0.01, 0.1, 0.2, 0.4, 0.8))]
    losses = read_off(row, {1: 0.05, 3: 0.05 * 4**1.5})
    assert losses == pytest.approx((0.05 / 100, 0.05, 0.05 * 2**1.5, 0.05 * 4**1.5, 0.05 * 4**1.5 * 4), rel=1e-9)


def test_methods_have_curves_of_their_own() -> None:
    row = [candidate("svd", 3, 0.1), candidate("tucker", 3, 0.1), candidate("svd", 1, 0.2), candidate("tucker", 1, 0.2)]
    losses = read_off(row, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4})
    assert losses == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_a_dip_is_levelled() -> None:
    row = [candidate("svd", 3, 0.1), candidate("svd", 2, 0.2), candidate("svd", 1, 0.3)]
    assert read_off(row, {0: 0.1, 1: 0.05, 2: 0.3}) == pytest.approx((0.1, 0.1, 0.3))


def test_nothing_above_the_front_is_measured() -> None:
    row = [candidate("svd", p, e) for p, e in ((1, 0.9), (2, 0.95), (3, 0.5), (3, 0.4), (4, 0.4), (5, 0.1))]
    assert representatives(row, 8) == [0, 3, 5]
    assert representatives(row, 2) == [0, 5]


@given(row=ROWS, count=st.integers(1, 6))
def test_anchors_lie_on_the_front_from_its_largest_error_on(row: list[Candidate], count: int) -> None:
    chosen = anchors(row, count)
    assert 1 <= len(chosen) <= count
    assert len(set(chosen)) == len(chosen)
    for i in chosen:
        assert all(c.error >= row[i].error for c in row if c.cost.params < row[i].cost.params)
    cheapest = min(row, key=lambda c: (c.cost.params, c.error))
    assert max(row[i].error for i in chosen) == cheapest.error


def test_estimates_are_corrected_by_the_ratio_at_the_nearest_anchors() -> None:
    row = [candidate(method, 10 - i, error) for i, error in enumerate((0.01, 0.1, 0.2, 0.4)) for method in "ab"]
    estimates = [c.error**2 for c in row]
    losses = corrected(row, estimates, {2: 2 * 0.1**2, 6: 8 * 0.4**2})  # of method a; b follows
    ratios = [loss / estimate for loss, estimate in zip(losses, estimates, strict=True)]
    assert ratios == pytest.approx([2, 2, 2, 2, 4, 4, 8, 8])
    assert corrected(row, estimates, {}) == estimates
    assert corrected(row, estimates, {2: 0.0}) == estimates, "no change was measured: there is no ratio"
