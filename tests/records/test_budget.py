"""The budget grammar: what can be written, what it means, and that it prints as it reads."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import BudgetError, UnknownNameError
from rankfold.records import RESOURCES, Bound, Budget, Cost

DENSE = Cost(params=1000, macs=8000, fm=500, weight_bytes=4000)

resources = st.sampled_from(sorted(RESOURCES))
shares = st.one_of(
    st.floats(min_value=0, max_value=1, exclude_min=True),
    st.integers(1, 1000).map(lambda n: 1 / n),
    st.integers(1, 100).map(lambda n: n / 100),
)
bounds = st.one_of(
    st.builds(Bound, resource=resources, value=shares, relative=st.just(True)),
    st.builds(Bound, resource=resources, value=st.integers(1, 10**15), relative=st.just(False)),
)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params<=25%", {"params": 250}),
        ("params <= 25 %", {"params": 250}),
        ("params/4", {"params": 250}),
        ("params/3", {"params": 333}),
        ("params/1.5", {"params": 666}),
        ("parameters<=0.25", {"params": 250}),
        ("PARAMS<=25%", {"params": 250}),
        ("macs<=0.5", {"macs": 4000}),
        ("macs<=1", {"macs": 8000}),
        ("macs<=2", {"macs": 2}),
        ("macs<=1,234", {"macs": 1234}),
        ("macs<=1_234", {"macs": 1234}),
        ("macs<=1.5k", {"macs": 1500}),
        ("macs<=1.1k", {"macs": 1100}),
        ("macs<=3M", {"macs": 3_000_000}),
        ("macs<=2e3", {"macs": 2000}),
        ("macs<=0.001k", {"macs": 1}),
        ("flash<=512KiB", {"flash": 524288}),
        ("flash<=0.5kB", {"flash": 500}),
        ("bytes<=2MiB", {"flash": 2**21}),
        ("fm<=10%", {"fm": 50}),
        ("memory<=50%", {"memory": 750}),
        ("params<=29%", {"params": 290}),
        ("params<=25%, macs<=0.5; flash<=1kB", {"params": 250, "macs": 4000, "flash": 1000}),
        (["params<=25%", "macs/2"], {"params": 250, "macs": 4000}),
        ({"params": 0.25, "flash": "2KiB"}, {"params": 250, "flash": 2048}),
        ({"params": "25%", "macs": 100}, {"params": 250, "macs": 100}),
    ],
)
def test_reads(text: object, limits: dict[str, int]) -> None:
    budget = Budget.parse(text)
    assert {b.resource: b.limit(DENSE) for b in budget.bounds} == limits


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "params", "params<25%", "params=25%", "params>=25%", "params<=", "<=25%", "params<=25%%",
        "params<=-1", "params<=0", "params<=0%", "params/0", "params/0.5", "params/4%", "params/4k", "params<=101%",
        "params<=1.5.2", "params<=inf", "params<=nan", "params<=1e999", "params<=0.0001k", "flash<=3XiB", "macs<=1KiB",
        "memory<=512KiB", "params 25%", "params<=25% macs<=50%", 0.25, 7, None, {}, [], {"params": None},
        {"params": True}, {"params": math.nan}, {"params": math.inf}, {"params": -0.5}, [0.25],
    ],
)  # fmt: skip
def test_refuses(text: object) -> None:
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_refuses_unknown_resources_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'macs'"):
        Budget.parse("mac<=50%")


@given(st.lists(bounds, min_size=1, max_size=4))
def test_prints_as_it_reads(listed: list[Bound]) -> None:
    budget = Budget(tuple(listed))
    assert Budget.parse(str(budget)) == budget


def test_printing_tells_budgets_apart() -> None:
    """The negative control of the round trip."""
    texts = ["params<=25%", "params<=26%", "params<=25", "macs<=25%", "params<=1", "params<=0.001k", "params/3"]
    assert len({str(Budget.parse(text)) for text in texts}) == len(texts)


@given(st.integers(1, 100), st.integers(1, 10**12))
def test_percentages_are_exact(percent: int, params: int) -> None:
    limit = Budget.parse(f"params<={percent}%").bounds[0].limit(Cost(params=params))
    assert limit == math.floor(Fraction(percent, 100) * params)


@given(st.integers(1, 10**6), st.integers(1, 10**12))
def test_divisors_are_exact(divisor: int, params: int) -> None:
    limit = Budget.parse(f"params/{divisor}").bounds[0].limit(Cost(params=params))
    assert limit == params // divisor


@given(st.text(max_size=20))
def test_never_crashes(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except (BudgetError, UnknownNameError):
        return
    assert all(b.limit(DENSE) >= 0 for b in budget.bounds)


def test_every_bound_counts() -> None:
    budget = Budget.parse("params<=25%, macs<=50%")
    assert budget.exceeded(Cost(params=250, macs=4000), DENSE) == []
    assert [b.resource for b in budget.exceeded(Cost(params=251, macs=4000), DENSE)] == ["params"]
    assert [b.resource for b in budget.exceeded(Cost(params=250, macs=4001), DENSE)] == ["macs"]
    assert [b.resource for b in budget.exceeded(DENSE, DENSE)] == ["params", "macs"]
