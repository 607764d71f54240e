"""`print` shows what the command line shows, `repr` is one line, and notebooks get a table."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import rankfold as rf
from rankfold.errors import CorruptArtifact
from rankfold.records import Choice, Provenance
from rankfold.reporting.terminal import print_record

MOST = 60


class Named(nn.Module):
    """Layers whose names are markup, and one that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("<b>[red]x", nn.Linear(24, 32))
        self.add_module("norm", nn.LayerNorm(32))
        self.add_module("last", nn.Linear(32, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, norm, last = self.children()
        return last(norm(first(x)).relu())


def net() -> nn.Module:
    return Named().eval()


def deep(layers: int = 200) -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]).eval()


X = torch.zeros(2, 24)


def _result() -> rf.Result:
    return rf.compress(net(), X, budget="params<=70%")


MAKERS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "inventory": (lambda: rf.inspect(net(), X), ("compressible: 96% of parameters", "Linear 24->32", "total")),
    "plan": (
        lambda: _result().plan,
        ("layers factored, strategy compressnas, budget params<=70%", "svd", "Linear 24->32"),
    ),
    "report": (lambda: _result().report, ("compressible: 96% of parameters", "Before and after", "met")),
    "result": (_result, ("compressible: 96% of parameters", "Before and after", "met")),
    "sweep": (lambda: rf.sweep(net(), X, points=3), ("compressible: 96% of parameters", "params")),
    "analysis": (lambda: rf.analyze(net(), X, methods="svd"), ("<b>[red]x",)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_print_shows_a_table(kind: str) -> None:
    make, words = MAKERS[kind]
    record = make()
    text = str(record)
    lines = text.splitlines()
    assert all(word in text for word in words)
    assert "<b>[red]x" in text or kind == "sweep"  # as it is: no markup of the terminal
    assert max(map(len, lines)) <= 100
    assert len(lines) <= MOST
    assert "\x1b" not in text
    assert "LayerInfo(" not in text
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("kind", MAKERS)
def test_repr_is_one_short_line(kind: str) -> None:
    text = repr(MAKERS[kind][0]())
    assert text.startswith("<")
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize("kind", MAKERS)
def test_notebooks_show_the_same_without_markup(kind: str) -> None:
    record = MAKERS[kind][0]()
    html = record._repr_html_()
    assert html.startswith("<pre")
    assert "&lt;b&gt;[red]x" in html or kind == "sweep"
    assert "<b>" not in html


@pytest.mark.parametrize("kind", ["inventory", "report", "result"])
def test_the_coverage_line_comes_first(kind: str) -> None:
    lines = str(MAKERS[kind][0]()).splitlines()
    assert next(i for i, line in enumerate(lines) if line.startswith("compressible: ")) <= 1


def test_print_is_the_command_lines_table() -> None:
    inventory = rf.inspect(net(), X)
    stream = io.StringIO()
    print_record(inventory, Console(file=stream, width=100))
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == str(inventory).splitlines()


def test_long_tables_are_cut_with_a_count() -> None:
    model = deep()
    inventory = rf.inspect(model, torch.zeros(1, 8))
    plan = rf.Plan(layers={str(i): Choice(method="svd", ranks=(2,)) for i in range(200)})
    for record, first, last in ((inventory, "compressible: 100%", "total"), (plan, "200 of 200 layers", "199")):
        lines = str(record).splitlines()
        assert len(lines) == MOST
        assert lines[0].startswith(first)
        assert any(line.strip().startswith(last) for line in lines[-3:])
        (note,) = [line for line in lines if "omitted" in line]
        assert int(note.split()[1]) > 140
        assert len(repr(record)) < 200


def test_a_table_that_fits_is_whole() -> None:
    text = str(rf.inspect(deep(45), torch.zeros(1, 8)))
    assert "omitted" not in text
    assert all(f"\n {i} " in text for i in range(45))


def test_an_empty_plan_and_a_kept_layer() -> None:
    assert str(rf.Plan(layers={})).startswith("0 of 0 layers factored, strategy manual")
    kept = rf.Plan(layers={"a": Choice(reason="depthwise convolution: nothing to factor")})
    assert "kept" in str(kept)
    assert "depthwise convolution: nothing to factor (1 layer)" in str(kept)


def test_no_control_characters() -> None:
    plan = rf.Plan(layers={"a\x1b[31m": Choice(reason="\x07bell")}, provenance=Provenance(strategy="\x1b]0;x\x07"))
    for text in (str(plan), repr(plan), plan._repr_html_()):
        assert "\x1b" not in text
        assert "\x07" not in text
    with pytest.raises(CorruptArtifact):
        rf.Plan.from_json("{}")


def test_equality_and_copies_are_as_before() -> None:
    plan = _result().plan
    assert rf.Plan.from_json(plan.to_json()) == plan
    assert f"{plan}" == str(plan)
