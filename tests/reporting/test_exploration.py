"""The analysis shown: tables, the page, and the scores of Table 6."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import rankfold as rf
from rankfold.cost.exploration import METRICS, Exploration, Extent, Space, Step, explore, layer_of, scores
from rankfold.errors import ConfigError, CorruptArtifact, NoMatchingLayer
from rankfold.reporting.exploration import Analysis

LAYERS = ["conv:3x3x16x24,stride=2", "linear:60x40"]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return rf.analyze(
        LAYERS, steps=(0.85, 0.6), random=1, time=True, title="<layers> & more", methods="tucker,tt,svd,ttm"
    )


def printed(analysis: Analysis, width: int = 140) -> str:
    stream = io.StringIO()
    analysis.print(Console(file=stream, width=width))
    return stream.getvalue()


def test_tables_have_the_papers_titles_and_the_records_numbers(analysis: Analysis) -> None:
    text = printed(analysis)
    for title in (
        "(Table 1)",
        "(Tables 2 and 3)",
        "(Tables 4 and 5)",
        "(Figs 6 and 7)",
        "(Table 6)",
        "<layers> & more",
    ):
        assert title in text
    conv, linear = analysis.layers
    assert f"{conv.space('tt').step(0.6).count:,}" in text
    assert f"{linear.space('ttm').step(0.85).count:,}" in text
    assert "16·r1 + 24·r3 + 3·r1·r2 + 3·r2·r3" in text
    ranks = conv.space("tucker").step(0.6).fewest_macs.ranks
    assert re.search(rf"60 %\s+tucker\s+fewest MACs\s+\({ranks[0]}, {ranks[1]}\)", text)
    assert "flexibility" in text


def test_networks_of_many_layers_print_no_solutions_but_their_page_has_them() -> None:
    many = rf.analyze([f"linear:{n}x40" for n in range(40, 48)], methods="svd", steps=(0.5,))
    assert "Chosen solutions" not in printed(many)
    assert "Tables 2 and 3" in printed(many)
    assert "Chosen solutions" in many.to_html()


def test_kept_layers_are_listed() -> None:
    mixed = rf.analyze([*LAYERS, "conv:1x1x8x8"], methods="tucker")
    text = printed(mixed)
    assert "Not analyzed" in text
    assert "1x1 convolution has no spatial extent" in text


def test_a_space_without_a_valid_setting_is_shown() -> None:
    empty = rf.analyze(["conv:3x3x1x2", "linear:7x6", "linear:40x40"], methods="cp,ttm", steps=(0.5,))
    assert empty.layers[0].space("cp").size == 0 or empty.layers[0].space("cp").params is not None
    assert empty.layer("linear:40x40").space("ttm").size > 0
    with pytest.raises(NoMatchingLayer, match="the analysis has no layer 'linear:40x4'. Did you mean 'linear:40x40'"):
        empty.layer("linear:40x4")
    assert printed(empty)
    assert "svg" in empty.to_html()


def drawings(html: str) -> list[ET.Element]:
    return [ET.fromstring(svg.replace("&nbsp;", " ")) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


def test_the_page_holds_all_plots_and_needs_nothing_else(analysis: Analysis) -> None:
    html = analysis.to_html()
    kinds = [svg.get("class") for svg in drawings(html)]
    assert kinds.count("plane") == 5  # tucker, tt and svd of the convolution, svd and ttm of the linear layer
    assert kinds.count("chain") == 2
    assert kinds.count("columns") == 4
    assert all(svg.get("aria-label") for svg in drawings(html))
    assert "<layers>" not in html
    assert "&lt;layers&gt; &amp; more" in html
    assert not re.search(r"https?://|<script|<link|url\(|@import", html)


def test_the_planes_cells_are_the_histograms(analysis: Analysis) -> None:
    maps = [svg for svg in drawings(analysis.to_html()) if svg.get("class") == "plane"]
    tucker = analysis.layers[0].space("tucker")
    cells = [cell for cell in maps[0].iter("rect") if cell.get("class") == "cell"]
    filled = [(p, m) for p, line in enumerate(tucker.histogram.counts) for m, n in enumerate(line) if n]
    side = 240 / tucker.histogram.bins
    drawn = {(round((float(c.get("x")) - 52) / side), round((240 - float(c.get("y"))) / side) - 1) for c in cells}
    assert drawn == set(filled)
    depths = [float(c.get("fill-opacity")) for c in cells]
    assert max(depths) == 1
    assert min(depths) < 1


def test_many_layers_have_one_map_of_their_means() -> None:
    many = rf.analyze([f"conv:3x{n}x8" for n in range(4, 12)], methods="tt")
    kinds = [svg.get("class") for svg in drawings(many.to_html())]
    assert kinds.count("plane") == kinds.count("chain") == 1


def test_saving(analysis: Analysis, tmp_path: Path) -> None:
    assert analysis.save(tmp_path / "a.html").read_text("utf-8") == analysis.to_html()
    assert analysis.save(tmp_path / "a.json").read_text("utf-8") == analysis.to_json()
    again = Analysis.load(tmp_path / "a.json")
    assert again.to_json() == analysis.to_json()
    assert again.layers[0].space("tt").steps == analysis.layers[0].space("tt").steps
    assert replace(again, title="other").to_json() != analysis.to_json()
    assert printed(again) == printed(analysis)
    with pytest.raises(ConfigError, match=r"an analysis must be one of \.html, \.md, \.json\."):
        analysis.save(tmp_path / "a.pdf")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["layers"][0].update(group="filters"), "group must be one of convolutions, matrices"),
        (lambda data: data["layers"][1]["spaces"][0].update(size="many"), r"spaces\[0\].size must be a whole number"),
        (lambda data: data.update(format="rankfold-report"), "is not a rankfold analysis"),
        (lambda data: data.update(later=1), None),
    ],
)
def test_malformed_analyses_are_refused(
    analysis: Analysis, change: Callable[[dict[str, Any]], object], message: str | None
) -> None:
    data = analysis.to_dict()
    change(data)
    if message is None:  # the control
        assert Analysis.from_json(json.dumps(data)).to_json() == analysis.to_json()
        return
    with pytest.raises(CorruptArtifact, match=message):
        Analysis.from_json(json.dumps(data))


def test_markdown_has_the_tables(analysis: Analysis) -> None:
    text = analysis.to_markdown()
    assert "## Scores of convolutions (Table 6)" in text
    assert "&lt;layers> &amp; more" in text
    assert "svg" not in text


def space_of(**changes: object) -> Space:
    return replace(explore(layer_of("conv:3x3x8x8"), "tt", Exploration(steps=(0.5,))), **changes)


def extent(best: float, worst: float) -> Extent:
    return Extent(dense=10_000, least=round(10_000 * (1 - best)), most=round(10_000 * (1 - worst)))


def test_scores_are_those_of_table_6() -> None:
    """One value inside each row of the paper's table, from excellent to poor."""
    cases = {
        "best params": [{"params": extent(b, 0)} for b in (0.99, 0.95, 0.91, 0.85, 0.5)],
        "worst params": [{"params": extent(0.99, w)} for w in (0.3, 0.15, 0.08, 0.04, 0.01)],
        "best MACs": [{"macs": extent(b, 0)} for b in (0.99, 0.95, 0.91, 0.85, 0.5)],
        "worst MACs": [{"macs": extent(0.99, w)} for w in (0.3, 0.15, 0.08, 0.04, 0.01)],
        "best memory": [{"memory": extent(b, -1)} for b in (0.95, 0.7, 0.5, 0.1, -0.1)],
        "worst memory": [{"memory": extent(0.5, -g)} for g in (0, 0.1, 0.5, 1, 2)],
        "exploration space": [{"size": n} for n in (2_000_000, 1_000_000, 5_000, 500, 50)],
        "params coverage": [{"params": extent(c, 0)} for c in (0.99, 0.95, 0.9, 0.8, 0.5)],
        "MACs coverage": [{"macs": extent(c, 0)} for c in (0.99, 0.95, 0.9, 0.8, 0.5)],
        "decomposition time": [
            {"steps": (Step(reduction=0.5, count=1, prepare_s=s / 2, factorize_s=s / 2),)}
            for s in (1, 10, 45, 200, 400)
        ],
    }
    for metric, changes in cases.items():
        assert [scores(space_of(**change))[metric] for change in changes] == [5, 4, 3, 2, 1], metric
    assert [scores(space_of(limits=(1,) * n))["rank configurations"] for n in (5, 4, 3, 1)] == [5, 4, 3, 2]
    flexible = {"ttm": 5, "tucker": 4, "tt": 3, "cp": 2, "svd": 1}
    for method, score in flexible.items():
        space = space_of(method=method, limits=(4,) if score < 3 else (4, 4))
        assert scores(space)["flexibility"] == score


def test_what_is_not_known_has_no_score() -> None:
    found = scores(space_of(params=None, macs=None, memory=None, size=0))
    assert set(found) == set(METRICS)
    assert found["best params"] is None
    assert found["decomposition time"] is None
    assert found["exploration space"] == 1
