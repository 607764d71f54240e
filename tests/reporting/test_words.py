"""Numbers in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.reporting import MetricValue, words


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (words.compact(0), "0"),
        (words.compact(999), "999"),
        (words.compact(1000), "1.00k"),
        (words.compact(9996), "10.0k"),
        (words.compact(1_180_160), "1.18M"),
        (words.compact(999_999), "1.00M"),
        (words.compact(-2_500_000_000), "-2.50G"),
        (words.tick(2_500_000), "2.5M"),
        (words.tick(80_000), "80k"),
        (words.tick(100), "100"),
        (words.tick(0.25), "0.25"),
        (words.count(1_180_160), "1,180,160"),
        (words.size(830), "830 B"),
        (words.size(512 * 1024), "512 KiB"),
        (words.size(1_111_000), "1.06 MiB"),
        (words.seconds(0.42), "0.42 s"),
        (words.seconds(75.2), "75 s"),
        (words.seconds(725), "12 min 05 s"),
        (words.seconds(7500), "2 h 05 min"),
        (words.milliseconds(12.34), "12.3 ms"),
        (words.percent(0.75), "75 %"),
        (words.percent(0.7234), "72.3 %"),
        (words.percent(1), "100 %"),
        (words.percent(0.99999), ">99.9 %"),
        (words.percent(0.00001), "<0.1 %"),
        (words.percent(0), "0 %"),
        (words.percent(math.inf), "–"),
        (words.ratio(100, 25), "4.0x"),
        (words.ratio(1234, 1), "1234x"),
        (words.ratio(100, 0), "–"),
        (words.reduction(100, 25), "75 %"),
        (words.reduction(100, 112), "12 % more"),
        (words.reduction(0, 5), "–"),
        (words.error(0.1234), "0.123"),
        (words.error(0.0001), "<0.001"),
        (words.error(0.0), "0.000"),
        (words.error(None), "–"),
        (words.ranks((64,)), "64"),
        (words.ranks((64, 32)), "(64, 32)"),
        (words.number(0.5), "0.5000"),
        (words.rate(0.000125), "0.000125"),
    ],
)
def test_numbers_read_well(shown: str, text: str) -> None:
    assert shown == text


@given(st.floats(min_value=1e-3, max_value=1e14))
def test_compact_numbers_are_short_and_right(value: float) -> None:
    text = words.compact(value)
    assert len(text) <= 7
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * scale == pytest.approx(value, rel=6e-3)


def test_accuracy_is_in_percent_and_its_change_in_points() -> None:
    accuracy = MetricValue(name="top-1", dense=0.9173, compressed=0.5, tuned=0.912)
    assert words.metric(accuracy, accuracy.dense) == "91.73 %"
    assert words.metric_change(accuracy) == "-0.53 points"
    assert accuracy.worse
    same = MetricValue(name="top-1", dense=0.9173, reloaded=0.9173)
    assert words.metric_change(same) == "0.00 points"
    assert not same.worse


def test_a_loss_is_no_percentage_and_worse_when_it_grows() -> None:
    loss = MetricValue(name="loss", dense=0.25, compressed=0.5, higher_is_better=False)
    assert words.metric(loss, loss.final) == "0.5000"
    assert words.metric_change(loss) == "+0.25"
    assert loss.worse
    forced = MetricValue(name="error", dense=0.25, compressed=0.2, higher_is_better=False, percent=True)
    assert words.metric_change(forced) == "-5.00 points"
    assert not forced.worse


def test_the_last_measured_value_counts_and_a_differing_reload_shows() -> None:
    metric = MetricValue(name="m", dense=0.9, compressed=0.5, tuned=0.8, reloaded=0.7)
    assert metric.final == 0.7
    assert metric.reload_differs
    assert not MetricValue(name="m", dense=0.9, tuned=0.8, reloaded=0.8).reload_differs
    assert MetricValue(name="m", dense=0.9).change is None
