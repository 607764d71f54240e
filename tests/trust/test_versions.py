"""The oldest supported versions are stated once, in pyproject.toml; the script that tests them reads them there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rankfold_versions", ROOT / "scripts" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _load()


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def test_every_dependency_has_one_floor() -> None:
    floors = script.floors()
    assert {"torch", "numpy", "scipy", "safetensors", "accelerate", "rich", "typer", "torchvision"} <= set(floors)
    for name, version in floors.items():
        assert numbers(importlib.metadata.version(name)) >= numbers(version), name


@pytest.mark.parametrize(
    "requirement", ["torch", "torch>=2.6,<3", "torch~=2.6", "torch[all]>=2.6", "numpy>=1.26"], ids=str
)
def test_a_requirement_that_is_no_plain_floor_is_an_error(requirement: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        f'[project]\ndependencies = ["numpy>=1.26", "{requirement}"]\n'
        "[project.optional-dependencies]\nvision = []\ndemo = []\ndatasets = []\nprune = []\n",
        "utf-8",
    )
    with pytest.raises(ValueError, match="the one floor of its package"):
        script.floors(path)


def test_the_readme_names_the_oldest_versions_that_are_supported() -> None:
    rows = re.findall(r"^\| ([a-z-]+) \| ([0-9.]+) \| ([0-9.]+) \|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    tested = {name: (numbers(oldest), numbers(newest)) for name, oldest, newest in rows}
    floors = script.floors()
    assert set(tested) == set(floors)
    for name, (oldest, newest) in tested.items():
        floor = numbers(floors[name])
        assert oldest[: len(floor)] == floor, name
        assert not any(oldest[len(floor) :]), name
        assert newest >= oldest, name


def test_counts_are_read_from_the_last_line_of_pytest() -> None:
    assert script._COUNTS.findall("5 failed, 2024 passed, 9 skipped, 1 error in 901.02s (0:15:01)") == [
        "5 failed",
        "2024 passed",
        "9 skipped",
        "1 error",
    ]
    found = {"oldest": (script.floors(), "9 passed"), "newest": (dict.fromkeys(script.floors(), "99"), "8 passed")}
    assert script.table(found).splitlines()[0] == "| | oldest | newest |"
    assert script.table(found).splitlines()[-1] == "| tests | 9 passed | 8 passed |"
