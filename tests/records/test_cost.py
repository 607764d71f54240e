"""Costs add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import UnknownNameError
from rankfold.records import Candidate, CandidateTable, Cost, resource_names

amounts = st.integers(0, 10**15)
costs = st.builds(Cost, params=amounts, macs=amounts, fm=amounts, weight_bytes=amounts)


@given(costs, costs, costs)
def test_arithmetic(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + b - b == a
    assert a + Cost() == a
    for resource in resource_names("additive"):
        assert (a + b).get(resource) == a.get(resource) + b.get(resource)
    assert a.memory == a.params + a.fm == a.get("memory")
    assert a.get("flash") == a.weight_bytes


def test_unknown_resources_raise() -> None:
    with pytest.raises(UnknownNameError, match="unknown resource 'parameters'"):
        Cost().get("parameters")


def test_costs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Cost().params = 3


def _candidate(layer: str, params: int, macs: int) -> Candidate:
    return Candidate(layer=layer, method="svd", ranks=(1,), cost=Cost(params=params, macs=macs), error=0.0)


def test_table_sums_chosen_fixed_and_kept_layers() -> None:
    a, b, fixed = _candidate("a", 4, 40), _candidate("b", 7, 10), _candidate("c", 1, 1)
    table = CandidateTable(
        rows={"a": (a,), "b": (b,)},
        dense={"a": Cost(params=10, macs=50), "b": Cost(params=20, macs=60), "c": Cost(params=30, macs=70)},
        total=Cost(params=100, macs=500),
        fixed={"c": fixed},
    )
    assert table.cost([]) == Cost(params=100 - 29, macs=500 - 69)
    assert table.cost([a]) == Cost(params=100 - 29 - 6, macs=500 - 69 - 10)
    assert table.cost([a, b]) == Cost(params=100 - 29 - 6 - 13, macs=500 - 69 - 10 - 50)
    assert table.least("params") == table.cost([a, b]).params
    assert table.least("macs") == table.cost([a, b]).macs
