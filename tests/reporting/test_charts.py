"""The geometry of the charts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.reporting.charts import Dot, Series, columns, groups, linear, logarithmic, plot, ticks


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_enclose_the_data_evenly(low: float, span: float) -> None:
    high = low + span
    steps = ticks(low, high)
    assert 2 <= len(steps) <= 7
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert steps[0] <= low + slack
    assert steps[-1] >= high - slack
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3, abs=slack)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12])
def test_ticks_of_one_value_still_span_something(value: float) -> None:
    steps = ticks(value, value)
    assert steps[0] < steps[-1]
    assert steps[0] <= value <= steps[-1]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["conv1", "layer1.0.a", "layer1.0.b", "layer2.0.a", "layer3.0.a", "fc"],
         [("conv1", 1), ("layer1", 2), ("layer2", 1), ("layer3", 1), ("fc", 1)]),
        (["f.s1.0", "f.s1.1", "f.s2.0", "f.s3.0", "f.s4.0", "head"],
         [("s1", 2), ("s2", 1), ("s3", 1), ("s4", 1), ("head", 1)]),
        (["only"], [("only", 1)]),
        ([f"f.{i}" for i in range(40)], [("f", 40)]),
    ],
)  # fmt: skip
def test_groups(names: list[str], wanted: list[tuple[str, int]]) -> None:
    found = groups(names)
    if names[0] == "f.0":  # nothing but single layers below: as many groups as layers
        wanted = [(str(i), 1) for i in range(40)]
    assert found == wanted


@given(st.lists(st.text("ab.", max_size=6), min_size=1, max_size=60))
def test_groups_cover_every_layer_once(names: list[str]) -> None:
    assert sum(length for _, length in groups(names)) == len(names)


def _heights(chart: str, css: str) -> list[float]:
    return [float(h) for h in re.findall(rf'height="([\d.]+)" class="{css}"', chart)]


def test_bars_are_as_high_as_their_values() -> None:
    series = [Series(name="x", css="before", values=[100.0, 50.0, 0.0, None, 1e-9])]
    chart = columns(list("abcde"), list("abcde"), series, label="x")
    high, half, zero, tiny = _heights(chart, "before")
    assert half == pytest.approx(high / 2, abs=0.01)
    assert zero == 0
    assert tiny == 1  # something is never drawn as nothing


@pytest.mark.parametrize("number", [1, 8, 28, 29, 200, 1000])
def test_bars_stay_inside_and_apart(number: int) -> None:
    names = [f"layer{i}" for i in range(number)]
    series = [Series(name="x", css="rank0", values=[1.0] * number)] * 2
    chart = columns(names, names, series, label="x", overlay=False)
    bars = [
        (float(x), float(w))
        for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*"rank0"', chart)
    ]
    assert len(bars) == 2 * number
    for (x, width), (following, _) in pairwise(bars):
        assert x + width <= following + 0.02
    assert bars[-1][0] + bars[-1][1] <= 1040


def test_a_line_goes_through_every_point_once() -> None:
    points = [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6)]
    dots = [Dot(x=x, y=y, tip="t", css="loss") for x, y in points]
    axes = [linear([point[i] for point in points], str) for i in (0, 1)]
    chart = plot("x", dots, points, *axes, css="loss", below="epoch")
    assert chart.count("<circle") == 3
    path = re.search(r'd="([^"]*)"', chart)
    assert path is not None
    assert len(re.findall("[ML]", path[1])) == 3
    assert "<path" not in plot("x", dots, [], *axes, css="loss", below="epoch")


def test_an_axis_of_powers_of_ten() -> None:
    axis = logarithmic([0.002, 30.0])
    assert axis.steps == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])
    assert [axis.place(v) for v in (0.0, 0.001, 100.0)] == [0, 0, 1]
    assert axis.place(1.0) == pytest.approx(0.6)


def test_nothing_to_draw_is_no_error() -> None:
    assert "<svg" in columns([], [], [], label="x")
    assert "<svg" in columns(["a"], ["a"], [Series(name="n", css="c", values=[None])], label="x")
    nan = [Series(name="n", css="before", values=[float("nan")])]
    assert "nan" not in columns(["a"], ["a"], nan, label="x")
