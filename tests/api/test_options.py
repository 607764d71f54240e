"""An option of a search stands in one place: Python, the command line, provenance and the docs take it from there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import rankfold as rf
from rankfold import cli
from rankfold._options import Flag, given, integer, option, options_of, options_table
from rankfold.api import options
from rankfold.errors import UnknownNameError
from rankfold.timing import Target

X = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
DOCS = Path(__file__).parents[2] / "docs" / "search.md"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> type[rf.Search]:
    """Register one more option, in one place."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class WithPatience(rf.Search):
        patience: int = option(3, "Rounds without progress.", check=integer(1), flag=Flag(kind=int))

    monkeypatch.setattr(options, "Search", WithPatience)
    return WithPatience


def run(*args: str) -> Any:
    return CliRunner().invoke(cli.build(), args, env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def test_python_takes_a_registered_option(registered: type[rf.Search]) -> None:
    plan = rf.plan(net(), X, budget="params<=50%", patience=5)
    assert plan.provenance.options == {"patience": 5}
    with pytest.raises(rf.RankfoldError, match="patience must be an integer of at least 1. Got 0"):
        rf.plan(net(), X, patience=0)


def test_an_option_that_is_not_registered_is_refused() -> None:
    with pytest.raises(rf.RankfoldError, match="unknown option 'patience'"):
        rf.plan(net(), X, patience=5)
    assert "--patience" not in run("plan", "--help").output


@pytest.mark.parametrize("command", ["plan", "compress", "sweep"])
def test_the_command_line_shows_a_registered_option(registered: type[rf.Search], command: str) -> None:
    shown = " ".join(re.sub(r"[│\s]+", " ", run(command, "--help").output).split())
    assert "--patience" in shown
    assert "Rounds without progress." in shown


def test_json_provenance_holds_a_registered_option(registered: type[rf.Search], tmp_path: Path) -> None:
    done = run(
        "plan", "lenet5_mnist5k", "--weights", "bundled", "--budget", "params<=60%", "--methods", "svd",
        "--patience", "7", "--out", str(tmp_path / "plan.json"), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["plan"]["provenance"]["options"] == {"methods": "svd", "patience": 7}


def test_the_table_of_the_docs_has_a_registered_option(registered: type[rf.Search]) -> None:
    assert "| `patience` | `--patience` | `3` | Rounds without progress. |" in options_table(registered).splitlines()


def test_the_docs_hold_the_table() -> None:
    text = DOCS.read_text("utf-8")
    start, end = "<!-- options: rankfold.Search -->\n", "\n<!-- end options -->"
    assert options_table(rf.Search) == text.partition(start)[2].partition(end)[0]


CHANGED: dict[str, Any] = {
    "strategy": rf.Energy(keep=0.5), "methods": ["svd", rf.QR(pivoting=False)], "data_aware": False,
    "reconstruct": rf.Sequential(ridge=0.1), "include": nn.Linear, "exclude": "fc*", "keep_first_last": True,
    "overrides": {"0": ("svd", 3), "2": None}, "rank_multiple": 4, "gauge": True, "deploy_dtype": "int8",
    "target": Target(runtime="torch", threads=2), "never_slower": False,
    "cache": Path("kept"), "time_limit": 20.0, "seed": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", options_of(rf.Search))
def test_every_option_is_checked_explained_and_written_down(name: str) -> None:
    field, known = options_of(rf.Search)[name]
    assert len(known.help) > 10
    assert known.check is not None
    with pytest.raises(rf.RankfoldError):
        rf.Search(**{name: object()})
    assert getattr(rf.Search(), name) == field.default
    assert set(json.loads(json.dumps(given(rf.Search(**{name: CHANGED[name]}))))) == {name}
    assert given(rf.Search()) == {}


def test_a_record_documents_its_options() -> None:
    doc = rf.Search.__doc__ or ""
    for name, (_, known) in options_of(rf.Search).items():
        assert f"\n{name} : " in doc
        assert known.help in doc


@pytest.mark.parametrize("function", [rf.plan, rf.compress, rf.sweep])
def test_a_misspelt_option_gets_the_nearest_name(function: Callable[..., Any]) -> None:
    with pytest.raises(rf.RankfoldError, match="Did you mean 'gauge'"):
        function(net(), X, guage=True)


def test_the_former_name_of_a_strategys_options_is_accepted() -> None:
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)), torch.randn(4, 16)
    data = [(x, torch.arange(4))]
    with pytest.warns(DeprecationWarning, match=r"strategy=CompressNAS\(\.\.\.\)"):
        old = rf.plan(net, x, budget="params<=60%", calibration=data, config={"proxy": "fisher"})
    new = rf.plan(net, x, budget="params<=60%", calibration=data, strategy=rf.CompressNAS(proxy="fisher"))
    assert old.layers == new.layers
    assert rf.plan(net, x, budget="params<=60%", config=None).layers
    with pytest.raises(UnknownNameError, match="'prxy'.*proxy"):
        rf.plan(net, x, budget="params<=60%", config={"prxy": "fisher"})
