"""The budget grammar: what can be written, what it means, and that it prints as it reads."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import UNITS, BudgetError, InfeasibleBudget, UnknownNameError
from rankfold.records import RESOURCES, Bound, Budget, Cost, resource_names

DENSE = Cost(params=1000, macs=8000, fm=500, weight_bytes=4000)

RAM = 4096

resources = st.sampled_from([*sorted(resource_names("additive")), "ram"])
shares = st.one_of(
    st.floats(min_value=0, max_value=1, exclude_min=True),
    st.integers(1, 1000).map(lambda n: 1 / n),
    st.integers(1, 100).map(lambda n: n / 100),
)
bounds = st.one_of(
    st.builds(Bound, resource=resources, value=shares, relative=st.just(True)),
    st.builds(Bound, resource=resources, value=st.integers(1, 10**15), relative=st.just(False)),
    st.builds(
        Bound, resource=st.just("accuracy_drop"), value=st.floats(0, 1, exclude_max=True), relative=st.just(False)
    ),
)


def limit_of(bound: Bound) -> int:
    return bound.limit(RAM if bound.resource == "ram" else DENSE)


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
        ("ram<=256KiB", {"ram": 2**18}),
        ("ram<=50%", {"ram": 2048}),
        ("ram/3, flash<=1kB", {"ram": 1365, "flash": 1000}),
        ({"ram": "2.5kB"}, {"ram": 2500}),
    ],
)
def test_reads(text: object, limits: dict[str, int]) -> None:
    budget = Budget.parse(text)
    assert {b.resource: limit_of(b) for b in budget.bounds} == limits


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "params", "params<25%", "params=25%", "params>=25%", "params<=", "<=25%", "params<=25%%",
        "params<=-1", "params<=0", "params<=0%", "params/0", "params/0.5", "params/4%", "params/4k", "params<=101%",
        "params<=1.5.2", "params<=inf", "params<=nan", "params<=1e999", "params<=0.0001k", "flash<=3XiB", "macs<=1KiB",
        "memory<=512KiB", "params 25%", "params<=25% macs<=50%", 0.25, 7, None, {}, [], {"params": None},
        "ram<=0", "ram<=101%", "ram/0", "accuracy_drop/2", "accuracy_drop<=100%", "accuracy_drop<=1",
        "accuracy_drop<=5", "accuracy_drop<=1k", "accuracy_drop<=1B", "accuracy_drop<=-1%", "accuracy_drop<1%",
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
    texts = [
        "ram<=25%",
        "ram<=25",
        "accuracy_drop<=25%",
        "accuracy_drop<=0%",
        "params<=25%",
        "params<=26%",
        "params<=25",
        "macs<=25%",
        "params<=1",
        "params<=0.001k",
        "params/3",
    ]
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
    assert all(b.kind == "accuracy" or limit_of(b) >= 0 for b in budget.bounds)


def test_every_bound_counts() -> None:
    budget = Budget.parse("params<=25%, macs<=50%")
    assert budget.exceeded(Cost(params=250, macs=4000), DENSE) == []
    assert [b.resource for b in budget.exceeded(Cost(params=251, macs=4000), DENSE)] == ["params"]
    assert [b.resource for b in budget.exceeded(Cost(params=250, macs=4001), DENSE)] == ["macs"]
    assert [b.resource for b in budget.exceeded(DENSE, DENSE)] == ["params", "macs"]


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("accuracy_drop<=1%", 0.01),
        ("accuracy_drop<=0.01", 0.01),
        ("accuracy_drop <= 0.5 %", 0.005),
        ("Accuracy_Drop<=0", 0.0),
        ({"accuracy_drop": 0.02}, 0.02),
        ({"accuracy_drop": "2%"}, 0.02),
    ],
)
def test_a_drop_is_absolute(text: object, drop: float) -> None:
    (bound,) = Budget.parse(text).bounds
    assert (bound.kind, bound.value, bound.relative) == ("accuracy", drop, False)


def test_a_drop_is_explained_when_it_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"accuracy_drop<=1%.*0\.92 may become 0\.91"):
        Budget.parse("accuracy_drop/4")
    with pytest.raises(BudgetError, match="up to 100 %"):
        Bound(resource="accuracy_drop", value=0.5, relative=True)


def test_kinds_of_bounds() -> None:
    budget = Budget.parse("params<=25%, ram<=2kB, accuracy_drop<=1%, macs/2, ram<=25%")
    assert [b.resource for b in budget.additive] == ["params", "macs"]
    assert [b.kind for b in budget.bounds] == ["additive", "peak", "accuracy", "additive", "peak"]
    assert [str(b) for b in budget.get("ram")] == ["ram<=2000", "ram<=25%"]
    assert budget.get("flash") == ()
    assert budget.limit("ram", RAM) == 1024
    assert budget.limit("ram", 10**6) == 2000
    assert budget.limit("params", DENSE) == 250
    assert budget.limit("flash", DENSE) is None
    assert str(budget.without("accuracy_drop")) == "params<=25%, ram<=2000, macs<=50%, ram<=25%"
    assert Budget.parse("accuracy_drop<=1%").without("accuracy_drop") is None


def test_a_limit_is_in_the_terms_of_its_resource() -> None:
    ram, params, drop = Budget.parse("ram<=50%, params<=50%, accuracy_drop<=1%").bounds
    assert (ram.limit(RAM), params.limit(DENSE)) == (2048, 500)
    for bound, dense in ((ram, DENSE), (params, RAM), (drop, DENSE), (drop, RAM)):
        with pytest.raises(BudgetError, match=bound.resource):
            bound.limit(dense)


def test_ram_is_exceeded_by_its_peak() -> None:
    budget = Budget.parse("params<=25%, ram<=50%, accuracy_drop<=1%")
    small = Cost(params=250)
    assert budget.exceeded(small, DENSE) == []
    assert budget.exceeded(small, DENSE, ram=(2048, RAM)) == []
    assert [b.resource for b in budget.exceeded(small, DENSE, ram=(2049, RAM))] == ["ram"]
    assert [b.resource for b in budget.exceeded(DENSE, DENSE, ram=(RAM, RAM))] == ["params", "ram"]


def test_errors_state_the_units_of_amounts() -> None:
    text = str(InfeasibleBudget("no", [("params", 1, 2, 3), ("flash(encoder.*)", 4, 5, 6), ("latency", 7, 8, 9)]))
    assert [line.split("  ")[1] for line in text.splitlines()[2:]] == [
        "params",
        "flash(encoder.*), bytes",
        "latency, ns",
    ]
    short = {"bytes": "B"}
    for resource in RESOURCES.values():
        base = [unit for unit, factor in resource.units.items() if factor == 1]
        unit = UNITS.get(resource.name)
        assert base == ([] if unit is None else [short.get(unit, unit)]), resource.name
