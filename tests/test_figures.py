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


def test_a_row_may_lack_a_column(figures: ModuleType) -> None:
    rows = [{"case": "dense", "top1": 0.9, "left": 0.5}, {"case": "bound", "top1": 0.95}]
    assert figures.render(rows).splitlines()[-1] == "| bound | 95.00 % |  |"


def micro(method: str, rows: list[tuple[str, str, float, float, float]]) -> dict[str, object]:
    """Return a result against one peer, rows being shape, data type, ratio, our error, theirs."""
    return {
        "benchmark": "micro",
        "options": {"methods": [method]},
        "results": [
            {
                "shape": shape,
                "dtype": dtype,
                "error": ours,
                "peers": [{"name": "peer", "ratio": ratio, "error": theirs}],
            }
            for shape, dtype, ratio, ours, theirs in rows
        ],
    }


def test_results_against_peers_are_summed_up(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    one = [("3x3x8x8", "float32", ratio, 0.5 + k / 1000, 0.5) for k, ratio in enumerate((0.5, 4.0, 250.0))]
    two = [("3x3x8x8", "float32", 2.0, 0.5, 0.5), ("1x1x8x8", "float64", 8.0, 0.5, 0.5)]
    (tmp_path / "a.json").write_text(json.dumps(micro("tucker", one)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(micro("qr", two)), encoding="utf-8")
    text = figures.updated("<!-- figures: a.json b.json -->\n<!-- end figures -->\n")
    assert "| tucker | peer | float32 | 3 | 4.0x | 0.5x | 250x | 1 | +2.0e-03 |" in text
    assert "| qr | peer | float64 | 1 | 8.0x | 8.0x | 8.0x | 0 | +0.0e+00 |" in text
    text = figures.updated("<!-- figures by shape: a.json b.json -->\n<!-- end figures -->\n")
    assert "| 3x3x8x8 | 4.0x | 2.0x |" in text
    assert "| 1x1x8x8 |  |  |" in text  # nothing in float32
    assert figures.updated(text) == text
