"""``rankfold export``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankfold as rf
from rankfold import exporters, zoo

Run = Callable[..., Any]


def test_file_and_json(run: Run, artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "small.pt2"
    done = run("export", artifact, "--out", path, "--check-images", "40")
    assert "relative difference of the outputs" in done.out
    assert "on 40 samples" in done.out
    data = run("export", artifact, "--out", path, "--json", "--fixed-batch").document
    assert (data["command"], data["file_format"], data["dynamic_batch"]) == ("export", "torch-export", False)
    assert data["bytes"] == path.stat().st_size
    dense = zoo.create("lenet5_mnist5k", weights="bundled")
    test = [batch[0][:1] for batch in zoo.data("mnist5k", split="test", normalize=zoo.entry("lenet5_mnist5k"))]
    small, exported = rf.load(artifact, dense).eval(), exporters.get("torch-export").open(path)
    assert all(exported(x)[0].argmax() == small(x).argmax() for x in test)
    quiet = run("export", artifact, "--out", path, "--quiet").out
    assert quiet.count("\n") == 1
    assert quiet.startswith(f"{path}: torch-export, ")


def test_int8(run: Run, artifact: Path, tmp_path: Path) -> None:
    args = ("export", artifact, "--out", tmp_path / "a.onnx", "--int8", "--calibration-images", "64")
    data = run(*args, "--reduce-range", "--json").document
    assert data["int8"]["reduce_range"]
    assert data["int8"]["products"] > 4
    assert data["metric"]["name"] == "top-1"
    assert abs(data["metric"]["dense"] - data["metric"]["reloaded"]) < 0.05
    assert data["bytes"] < 0.5 * data["float_bytes"]


def test_the_file_is_next_to_the_artifact(
    run: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits.v1"
    shutil.copytree(artifact, folder)
    assert run("export", folder, "--to", "torch-export", "--quiet").out.startswith(f"{folder}.pt2: torch-export, ")
    (tmp_path / "digits.v1.pt2").unlink()
    monkeypatch.chdir(folder)
    run("export", ".", "--to", "torch-export", "--quiet")
    assert (tmp_path / "digits.v1.pt2").is_file()


def test_bad_input(fail: Run, artifact: Path, tmp_path: Path) -> None:
    assert "belongs to no export format" in fail("export", artifact, "--out", tmp_path / "small.bin").err
    assert "unknown export format" in fail("export", artifact, "--out", tmp_path / "a.pt2", "--to", "coreml9").err
    assert (
        "--tolerance must be a number above 0"
        in fail("export", artifact, "--out", tmp_path / "a.pt2", "--tolerance", "0").err
    )
    assert "does not exist" in fail("export", tmp_path / "none", "--out", tmp_path / "a.pt2").err
    assert "--out and --to are missing" in fail("export", artifact).err
    assert "unknown export format 'tensorrt'" in fail("export", artifact, "--to", "tensorrt").err
    assert not list(tmp_path.iterdir())
