"""``rankfold gradcam``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankfold.reporting.heat_maps import HeatMaps

FAST = ("--strategy", "uniform", "--no-data-aware")


def test_page_of_several_levels(run: Callable[..., Any], small: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (extra cam)")
    page, data = tmp_path / "maps.html", tmp_path / "maps.json"
    levels = ("--at", "params<=50%", "--at", "params<=20%")
    done = run("gradcam", *small, *FAST, *levels, "--images", "2", "-o", page, "-o", data)
    assert "Grad-CAM of 2 images at layer conv2" in done.out
    maps = HeatMaps.load(data)
    assert [level.name for level in maps.levels] == ["params<=50%", "params<=20%"]
    assert len(maps.images) == 2
    assert page.read_text("utf-8").count("<img ") == 2 * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--at", "params<=50%"), "gradcam needs test images. Pass --data"),
        (("--weights", "bundled", "--data", "mnist5k", "--at", "params<=50%", "--layer", "conv9"), "no layer 'conv9'"),
        (("--weights", "bundled", "--data", "mnist5k", "--at", "much"), "much"),
    ],
)
def test_bad_arguments(invoke: Callable[..., Any], arguments: tuple[str, ...], words: str) -> None:
    if "--layer" in arguments:
        pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (extra cam)")
    done = invoke("gradcam", "lenet5_mnist5k", *arguments, *FAST)
    assert done.code == 2
    assert words in " ".join(done.err.split())


def test_a_missing_package(invoke: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    done = invoke("gradcam", *small, "--at", "params<=50%")
    assert done.code == 2
    assert 'pip install "rankfold[cam]"' in " ".join(done.err.split())
