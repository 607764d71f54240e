"""The sweep shown and stored: table, page, Markdown, CSV, and JSON that reads back."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import rankfold as rf
from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.records import Cost
from rankfold.reporting import MetricValue
from rankfold.reporting.sweep import Sweep, SweepPoint

HOSTILE = "<script>alert('x')</script>|`[red]"


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    """Return a sweep with everything in it: a front, beaten points, one not measured, one without a plan."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    found = rf.sweep(net, torch.randn(1, 32), points=6, name=HOSTILE, strategy=rf.CompressNAS(proxy="weight"))
    points = [replace(p, metric=0.9 - 0.1 / (i + 1)) for i, p in enumerate(found.points)]
    points[1] = replace(points[1], predicted_loss=3.0)
    points[2] = replace(points[2], metric=None, folder="models/one")
    lost = SweepPoint(budget="params<=0.1%", reason="budget 'params<=0.1%' cannot be met.\n  resource asked")
    return replace(found, points=(lost, *points), metric=MetricValue(name="top-1", dense=0.92, samples=500))


def printed(sweep: Sweep, width: int = 100) -> str:
    stream = io.StringIO()
    sweep.print(Console(file=stream, width=width))
    return stream.getvalue()


def drawings(html: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


def test_the_table(sweep: Sweep) -> None:
    text = printed(sweep)
    assert max(map(len, text.splitlines())) <= 100
    assert HOSTILE in text
    assert "dense top-1 92.00 % on 500 samples" in " ".join(text.split())
    lines = [line for line in text.splitlines() if line.strip().startswith("params ≤") and " ≤ 0.1 %" not in line]
    assert len(lines) == 6
    assert [line.rstrip().endswith("front") for line in lines] == [True, False, True, True, True, True]
    assert "80.00 %" in lines[0]
    assert "-12.00" in lines[0]
    assert "–" in lines[2]
    first = sweep.points[1]
    assert first.cost is not None
    assert f"({100 * first.cost.params / sweep.dense.params:.1f} %)" in lines[0]
    assert "params ≤ 0.1 %: budget 'params<=0.1%' cannot be met." in text
    assert "resource asked" not in text


def test_without_a_metric_there_are_no_columns_of_it(sweep: Sweep) -> None:
    bare = replace(sweep, points=tuple(replace(p, metric=None) for p in sweep.points), metric=None)
    assert "change" in printed(sweep)
    assert "change" not in printed(bare)
    assert len(drawings(bare.to_html())) == 1
    assert len(drawings(sweep.to_html())) == 2


def test_feature_maps_have_a_column_where_they_are_swept(sweep: Sweep) -> None:
    assert "memory" not in printed(sweep).splitlines()[4]
    assert "memory" in printed(replace(sweep, resource="memory"))


def test_the_page_shows_the_front_and_needs_nothing_else(sweep: Sweep) -> None:
    html = sweep.to_html()
    damage, metric = drawings(html)
    assert damage.get("aria-label") == "Predicted loss by params left"
    assert metric.get("aria-label") == "Measured top-1 by params left"
    tips = ["".join(title.itertext()) for title in damage.iter("title")]
    assert len(tips) == 6
    assert tips[0].startswith(f"budget {sweep.points[1].budget}".replace("<=", " ≤ ").replace("%", " %"))
    assert f"predicted loss {sweep.points[1].predicted_loss:.3g}" in tips[0]
    assert "top-1 80.00 %" in tips[0]
    dots = [dot.get("class") for dot in damage.iter("circle")]
    assert dots == ["dot loss", "dot kept", *["dot loss"] * 4]
    assert len([dot for dot in metric.iter("circle") if dot.get("class") == "dot metric"]) == 5
    assert "dense 92.00 %" in "".join(metric.itertext())
    assert not re.search(r"https?://|<script|<link|url\(|@import", html)
    assert "&lt;script&gt;" in html
    assert "cannot be met" in html


def test_points_lie_where_their_numbers_say(sweep: Sweep) -> None:
    (damage, _) = drawings(sweep.to_html())
    dots = [(float(d.get("cx", 0)), float(d.get("cy", 0))) for d in damage.iter("circle")]
    shares = [sweep.share(p) for p in sweep.feasible]
    steps = zip(itertools.pairwise(dots), itertools.pairwise(shares), strict=True)
    slopes = [(b[0] - a[0]) / (t - s) for (a, b), (s, t) in steps]
    assert max(slopes) - min(slopes) < 1
    by_damage = sorted(zip(sweep.feasible, dots, strict=True), key=lambda pair: pair[0].predicted_loss or 0.0)
    heights = [y for _, (_, y) in by_damage]
    assert heights == sorted(heights, reverse=True)
    assert all(0 <= x <= 1040 for x, _ in dots)
    assert all(0 <= y <= 300 for y in heights)


@pytest.mark.parametrize("damages", [(0.0, 0.0), (0.0, 1e-9), (5.0, 5.0), (1e-30, 1e30)])
def test_any_damage_can_be_drawn(sweep: Sweep, damages: tuple[float, float]) -> None:
    points = [replace(p, predicted_loss=d) for p, d in zip(sweep.feasible[:2], damages, strict=True)]
    (chart, _) = drawings(replace(sweep, points=tuple(points)).to_html())
    assert all(0 <= float(dot.get("cy", -1)) <= 301 for dot in chart.iter("circle"))
    assert len(list(chart.iter("text"))) < 40


def test_markdown(sweep: Sweep) -> None:
    text = sweep.to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 8
    assert len({line.count("|") - line.count("\\|") for line in table}) == 1
    assert "| -12.00 |" in table[2]
    assert "\n- params ≤ 0.1 %: budget" in text
    assert "<script" not in text


def test_csv(sweep: Sweep) -> None:
    rows = list(csv.DictReader(io.StringIO(sweep.to_csv())))
    assert len(rows) == 7
    for row, point in zip(rows, sweep.points, strict=True):
        assert row["budget"] == point.budget
        assert row["reason"] == point.reason
        assert row["params"] == ("" if point.cost is None else str(point.cost.params))
        assert row["metric"] == ("" if point.metric is None else str(point.metric))
    assert [row["front"] for row in rows] == ["0", "1", "0", "1", "1", "1", "1"]


def test_json_reads_back(sweep: Sweep, tmp_path: Path) -> None:
    again = Sweep.load(sweep.save(tmp_path / "deep" / "s.json"))
    assert again.to_json() == sweep.to_json()
    assert again.front() == sweep.front()
    assert again.plan("params<=50%").layers == sweep.plan("params<=50%").layers
    assert [p.budget for p in again.points] == [p.budget for p in sweep.points]
    assert replace(again, points=again.points[1:]).to_json() != sweep.to_json()
    plan = json.loads(sweep.to_json())["points"][3]["plan"]
    assert rf.Plan.from_json(json.dumps(plan)).layers == sweep.plan("params<=50%").layers
    assert json.loads(sweep.to_json())["points"][2]["front"] is False


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format="rankfold-report"), "is not a rankfold sweep"),
    "newer": (lambda d: d.update(version=9), "reads versions up to 1"),
    "no version": (lambda d: d.pop("version"), "None"),
    "no points": (lambda d: d.pop("points"), "has no 'points'"),
    "a point that is none": (lambda d: d["points"].append(3), "must be an object"),
    "a damage in words": (lambda d: d["points"][1].update(predicted_loss="much"), r"points\[1\].predicted_loss"),
    "a plan that is none": (lambda d: d["points"][1].update(plan={"a": 1}), r"points\[1\].plan"),
    "a plan without its cost": (lambda d: d["points"][1].update(cost=None), "no cost or predicted loss"),
    "no budget": (lambda d: d["points"][1].pop("budget"), "has no 'budget'"),
    "no dense cost": (lambda d: d.pop("dense"), "has no 'dense'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_json_is_refused(sweep: Sweep, name: str) -> None:
    damage, message = DAMAGES[name]
    data = json.loads(sweep.to_json())
    damage(data)
    with pytest.raises(CorruptArtifact, match=message):
        Sweep.from_json(json.dumps(data))


def test_files(sweep: Sweep, tmp_path: Path) -> None:
    for suffix, start in ((".html", "<!doctype"), (".md", "# "), (".json", "{"), (".csv", "budget,")):
        assert sweep.save(tmp_path / f"s{suffix}").read_text("utf-8").startswith(start)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(ConfigError, match=r"\.html, \.md, \.json, \.csv"):
        sweep.save(tmp_path / "s.pdf")
    with pytest.raises(CorruptArtifact, match="there is no sweep"):
        Sweep.load(tmp_path / "none.json")
    with pytest.raises(CorruptArtifact, match="not valid JSON"):
        Sweep.load(tmp_path / "s.html")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        Sweep.load(tmp_path)


def test_a_sweep_without_a_plan_can_be_shown() -> None:
    none = Sweep(resource="params", dense=Cost(params=10), points=(SweepPoint(budget="params<=10%", reason="why"),))
    assert none.front() == ()
    assert "why" in printed(none)
    assert drawings(none.to_html()) == []
    assert "why" in none.to_html()
