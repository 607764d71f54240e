"""``rankfold sweep``, and ``compress`` with a bound on the accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankfold as rf
from rankfold import zoo
from rankfold.cli.sweeping import parse_limits
from rankfold.errors import ConfigError
from rankfold.reporting.sweep import Sweep

Run = Callable[..., Any]
FEW = ("--strategy-option", "points=2", "--strategy-option", "samples=32")


def test_files_models_and_a_table(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    page, data, models = tmp_path / "deep" / "sweep.html", tmp_path / "sweep.json", tmp_path / "models"
    args = (*small, *FEW, "--points", "4", "--evaluate-points", "2", "-o", page, "-o", data, "--models", models)
    done = run("sweep", *args)
    assert "4 plans over params from one table · strategy compressnas" in " ".join(done.out.split())
    assert done.out.count("front") == 4
    assert "lenet5_mnist5k" in page.read_text("utf-8")
    found = Sweep.load(data)
    assert [point.metric is not None for point in found.points] == [True, False, False, True]
    assert found.metric is not None
    assert found.metric.name == "top-1"
    folders = sorted(path.name for path in models.iterdir())
    assert len(folders) == 4
    folder = found.points[3].folder
    assert folder is not None
    assert run("evaluate", folder, "--json").document["value"] == found.points[3].metric


def test_json_and_what_is_kept(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    args = ("sweep", *small, *FEW, "--between", "20%,60%", "--points", "3", "--cache", tmp_path, "--json")
    first = run(*args).document
    assert first["command"] == "sweep"
    assert [p["budget"] for p in first["sweep"]["points"]] == ["params<=20%", "params<=40%", "params<=60%"]
    assert first["sweep"]["measured"] > 0
    again = run(*args).document
    assert again["sweep"]["measured"] == 0
    assert again["sweep"]["points"] == first["sweep"]["points"]


def test_budgets_one_by_one_with_a_fixed_bound_and_no_data(run: Run, tmp_path: Path) -> None:
    done = run(
        "sweep", "lenet5_mnist5k", "--at", "flash<=40KiB", "--at", "params<=1%", "-b", "macs<=90%",
        "--resource", "flash", "--out", tmp_path / "s.csv",
    )  # fmt: skip
    assert "flash ≤ 40960, macs ≤ 90 %" in done.out
    assert "params ≤ 1 %, macs ≤ 90 %: budget" in done.out
    assert len((tmp_path / "s.csv").read_text("utf-8").splitlines()) >= 3


def test_no_evaluate(run: Run, small: tuple[str, ...]) -> None:
    document = run("sweep", *small, *FEW, "--points", "2", "--no-evaluate", "--json").document
    assert document["sweep"]["metric"] is None


BAD = {
    "resource": (("--resource", "parms"), "Did you mean 'params'"),
    "points": (("--points", "1"), "--points"),
    "between": (("--between", "80%,20%"), "--between must be"),
    "at": (("--at", "params=5"), "cannot be read"),
    "accuracy": (("--budget", "accuracy_drop<=1%"), "Use compress"),
    "evaluate without data": (("--evaluate-points", "3"), "Pass --data"),
    "evaluate and not": (("--evaluate-points", "3", "--no-evaluate"), "exclude each other"),
    "file": (("--out", "{folder}/sweep.pdf"), "must end in .html, .json, .md or .csv"),
    "unknown network": (("--points", "3"), "Did you mean"),
    "reconstruction": (("--reconstruct", "data"), "needs calibration data. Pass --data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(fail: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(zoo, "create", work)
    args, words = BAD[name]
    network = "lenet5" if name == "unknown network" else "lenet5_mnist5k"
    done = fail("sweep", network, *(arg.format(folder=tmp_path) for arg in args))
    assert words in " ".join(done.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_limits() -> None:
    assert parse_limits("20%, 0.8") == (0.2, 0.8)
    for text in ("20%", "20%,20%", "0,50%", "50%,100%", "a,b", "10%,20%,30%", ""):
        with pytest.raises(ConfigError, match="--between must be"):
            parse_limits(text)


def test_compress_to_an_accuracy(run: Run, fail: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    args = ("compress", *small, *FEW, "--out", tmp_path / "small")
    report = run(*args, "--budget", "accuracy_drop<=5%", "--json").document["report"]
    (metric,) = report["metrics"]
    assert metric["dense"] - metric["reloaded"] <= 0.05
    assert report["after"]["params"] < 0.5 * report["before"]["params"]
    (bound,) = report["bounds"]
    assert bound["text"] == "accuracy_drop<=5%"
    assert bound["value"] <= bound["limit"] == 0.05
    assert any(note.startswith("tried params<=") for note in report["notes"])
    assert rf.Plan.load(tmp_path / "small").provenance.budget in " ".join(report["notes"])
    done = fail("compress", "lenet5_mnist5k", "--budget", "accuracy_drop<=5%", "--out", tmp_path / "none")
    assert "Pass --data" in done.err
    assert not (tmp_path / "none").exists()
