"""The tables in the documents are those of the result files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", module)
    spec.loader.exec_module(module)
    return module


def test_the_documents_are_up_to_date(figures: ModuleType) -> None:
    for path in figures.documents():
        text = path.read_text(encoding="utf-8")
        assert figures.updated(text) == text, f"run python benchmarks/figures.py: {path.name} is out of date"


def test_a_typed_figure_is_found(figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    record = {"results": [{"case": "dense", "params": 1234, "top1": 0.9173}]}
    (tmp_path / "x.json").write_text(json.dumps(record), encoding="utf-8")
    written = figures.updated("a\n<!-- figures: x.json -->\n<!-- end figures -->\nb\n")
    assert "| dense | 1,234 | 91.73 % |" in written
    assert figures.updated(written) == written
    typed = written.replace("91.73", "95.00")
    assert figures.updated(typed) != typed
