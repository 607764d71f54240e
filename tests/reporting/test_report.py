"""JSON round trips, files, and files that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankfold.errors import ConfigError, CorruptArtifact, RankfoldError
from rankfold.records import Provenance
from rankfold.reporting import EpochRow, Report
from rankfold.reporting.summary import provenance_rows


def test_json_round_trip(report: Report) -> None:
    again = Report.from_json(report.to_json())
    assert again == report
    assert isinstance(again, Report)
    assert Report.from_json(replace(report, model_name="other").to_json()) != report


def test_json_names_its_format_and_version(small: Report) -> None:
    data = json.loads(small.to_json())
    assert (data["format"], data["version"]) == ("rankfold-report", 1)


def test_numbers_that_are_not_finite_survive(small: Report) -> None:
    rows = (EpochRow(epoch=1, loss=math.nan), EpochRow(epoch=2, loss=math.inf))
    diverged = replace(small, history=rows)
    text = diverged.to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    again = Report.from_json(text)
    assert math.isnan(again.history[0].loss)
    assert again.history[1].loss == math.inf
    assert "nan" in diverged.to_html()


def test_unknown_fields_of_the_same_version_are_ignored(small: Report) -> None:
    data = json.loads(small.to_json())
    data["layers"][0]["later"] = 1
    assert Report.from_json(json.dumps({**data, "later": {}})) == small


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def _drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", value="rankfold-plan"), "not a rankfold report"),
        (_set("version", value=2), "report version 2; this version of rankfold reads versions up to 1"),
        (_set("version", value="1"), "report version '1';"),
        (_set("version", value=True), "report version True;"),
        (_drop("version"), "report version None;"),
        (_drop("before"), "has no 'before'"),
        (_drop("layers", 1, "layer"), r"layers\[1\] has no 'layer'"),
        (_set("layers", value={}), r"layers must be a list"),
        (
            _set("layers", 1, "ranks", value=[1.5]),
            r"layers\[1\]\.ranks\[0\] must be a whole number",
        ),
        (_set("layers", 1, "ranks", value=[True]), r"ranks\[0\] must be a whole number"),
        (_set("before", "params", value="many"), r"before\.params must be a whole number"),
        (_set("metrics", 0, "dense", value="good"), r"metrics\[0\]\.dense must be a number"),
        (_set("metrics", 0, "higher_is_better", value=1), "must be true or false"),
        (_set("notes", value=[3]), r"notes\[0\] must be text"),
        (_set("latency", value=[1.0]), "latency must be a list of 2"),
        (_set("timings", value=[]), "timings must be an object"),
        (_set("provenance", value=None), "provenance must be an object"),
        (_set("model_name", value="x" * 99), None),
    ],
)
def test_a_malformed_field_is_named(
    small: Report, change: Callable[[dict[str, Any]], None], message: str | None
) -> None:
    data = json.loads(small.to_json())
    change(data)
    text = json.dumps(data)
    if message is None:  # the control: a change that is none of these is read
        assert Report.from_json(text).model_name == "x" * 99
        return
    with pytest.raises(CorruptArtifact, match=message):
        Report.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"rankfold-report"', "[" * 100_000])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(CorruptArtifact):
        Report.from_json(text)


def test_a_truncated_report_is_refused_wherever_it_ends(small: Report) -> None:
    text = small.to_json().rstrip()
    for end in range(0, len(text), 97):
        with pytest.raises(CorruptArtifact):
            Report.from_json(text[:end])


@pytest.mark.parametrize("suffix", [".html", ".md", ".json", ".HTML"])
def test_the_suffix_decides(small: Report, tmp_path: Path, suffix: str) -> None:
    path = small.save(tmp_path / "new" / f"report{suffix}")
    text = path.read_text("utf-8")
    wanted = {".html": small.to_html, ".md": small.to_markdown, ".json": small.to_json}
    assert text == wanted[suffix.lower()]()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.json.gz"])
def test_another_suffix_is_refused_with_the_choices(small: Report, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.html, \.md, \.json"):
        small.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_clear_error(small: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RankfoldError, match="cannot write"):
        small.save(tmp_path / "file" / "report.html")


def test_load_reads_a_file_or_a_folder(small: Report, tmp_path: Path) -> None:
    path = small.save(tmp_path / "report.json")
    assert Report.load(path) == small
    assert Report.load(tmp_path) == small


def test_load_refuses_what_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="there is no report"):
        Report.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        Report.load(tmp_path / "bytes.json")


def test_what_a_search_found_is_shown(small: Report) -> None:
    """The proxy, the predicted loss and the rounds of a search stand where the plan's origin does."""
    origin = Provenance(
        strategy="compressnas", search={"proxy": "network", "predicted_loss": 0.123456, "together": [0.5, 0.25]}
    )
    rows = dict(provenance_rows(replace(small, provenance=origin)))
    assert rows["search"] == "proxy network, predicted loss 0.1235, together 0.5 → 0.25"
    assert "search" not in dict(provenance_rows(replace(small, provenance=Provenance())))
