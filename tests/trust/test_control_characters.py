"""No message, report or page holds a control character from outside; what is written out can still be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import rankfold as rf
from rankfold._printable import LONGEST, printable, quoted, shortened
from rankfold.cli import app
from rankfold.errors import (
    ConfigError,
    InfeasibleBudget,
    MissingExtra,
    RankfoldError,
    RankfoldWarning,
    UnknownNameError,
)
from rankfold.records import Choice, Cost, OtherModule
from rankfold.reporting import LayerRow, MetricValue, Report, inventory_markdown

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u200e\u2028\x00\r\x85\ud800x"
USAGE = "\x1b[2J\u202eevil"
SPACES = "\n\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"


def clean(text: str) -> bool:
    return all(c.isprintable() or c in SPACES for c in text)


ERRORS: dict[str, Callable[[], Exception]] = {
    "base": lambda: RankfoldError(f"a {EVIL}"),
    "subclass": lambda: ConfigError(EVIL),
    "name": lambda: UnknownNameError(EVIL, EVIL, [EVIL, "b"]),
    "budget": lambda: InfeasibleBudget(EVIL, [(EVIL, 1, 2, 3)]),
    "extra": lambda: MissingExtra(EVIL, EVIL, EVIL),
    "warning": lambda: RankfoldWarning(EVIL),
    "exception": lambda: RankfoldError(ValueError(EVIL)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_and_warnings(name: str) -> None:
    text = str(ERRORS[name]())
    assert clean(text)
    assert "x1b" in text, "it is written out, not dropped"


@pytest.mark.parametrize("message", ["a" * 2001, "b" * 300_000, EVIL * 1000, "word. " * 400 + "What to do."])
def test_messages_are_short_and_keep_their_end(message: str) -> None:
    text = str(ConfigError(message))
    assert len(text) <= LONGEST
    assert "left out" in text
    assert text[-10:] == printable(message)[-10:]
    assert str(ConfigError("c" * LONGEST)) == "c" * LONGEST, "the control"


def test_what_can_be_shown_stays() -> None:
    for text in ("", "Größe ≤ 5 \N{NO-BREAK SPACE}%", "層\n模型 😀", "a → b"):
        assert printable(text) == text
        assert shortened(text) == text
    assert printable("a\tb\r") == "a\\tb\\r"
    assert len(quoted({"a": [["x" * 10**6] * 1000] * 1000})) <= 200


def _report() -> Report:
    cost = Cost(params=10, macs=20, fm=5, weight_bytes=40)
    return Report(
        coverage=EVIL, before=cost, after=cost, model_name=EVIL, example=EVIL,
        layers=(
            LayerRow(name=EVIL, layer=EVIL, before=cost, after=cost, method=EVIL, ranks=(1,), reason=EVIL, note=EVIL),
            LayerRow(name=f"{EVIL}.2", layer=EVIL, before=cost, after=cost, reason=EVIL),
        ),
        others=(OtherModule(name=EVIL, type_name=EVIL, params=3, reason=EVIL),),
        metrics=(MetricValue(name=EVIL, dense=0.5, compressed=0.4),), notes=(EVIL,), timings={EVIL: 1.0}, created=EVIL,
    )  # fmt: skip


def test_reports_in_every_form(tmp_path: Path) -> None:
    report, screen = _report(), StringIO()
    report.print(Console(file=screen, width=100))
    shown = {"screen": screen.getvalue(), "html": report.to_html(), "markdown": report.to_markdown(),
             "json": report.to_json(), "str": str(report)}  # fmt: skip
    for form, text in shown.items():
        assert clean(text), form
        assert "1b" in text, form
    for suffix in (".html", ".md", ".json"):
        assert clean(report.save(tmp_path / f"r{suffix}").read_text(encoding="utf-8"))
    whole = EVIL.replace("\ud800", "\\ud800")  # half a pair is no text: it alone is not read back as it was
    assert Report.load(tmp_path / "r.json").notes == (whole,)


def test_inventories_of_models_with_such_names() -> None:
    model = nn.Sequential()
    model.add_module(EVIL.replace(".", ""), nn.Linear(24, 32))
    found = rf.inspect(model, torch.zeros(1, 24))
    for text in (str(found), inventory_markdown(found)):
        assert clean(text)
        assert "x1b" in text
    plan = rf.plan(model, torch.zeros(1, 24), budget="params<=50%", strategy="uniform")
    assert clean(plan.to_json())
    assert clean(str(plan))


def test_the_command_line(tmp_path: Path) -> None:
    report = replace(_report(), model_name=f"evil {EVIL}")
    report.save(tmp_path / "r.json")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "plan.json").write_text('{"format": "\\u001b[2J\\u202e"}')
    for arguments, code in ((("report", tmp_path / "r.json"), 0), (("report", tmp_path / "r.json", "--json"), 0),
                            (("evaluate", f"{EVIL[:-2]}"), 2), (("evaluate", tmp_path / "artifact"), 2),
                            (("compress", EVIL[:-2]), 2),
                            (("compress", "lenet5_mnist5k", "-b", EVIL[:-2]), 2),
                            ((f"re{USAGE}",), 2), (("report", "a", f"b{USAGE}"), 2), (("report", f"--{USAGE}"), 2),
                            ((f"--{USAGE}",), 2), (("plan", "a", "--seed", USAGE), 2)):  # fmt: skip
        done = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(a) for a in arguments], prog_name="rankfold")
        assert done.exit_code == code, done.output
        assert clean(done.output), arguments


def test_warnings_of_loading(tmp_path: Path) -> None:
    plan = rf.Plan(layers={"0": Choice(method="svd", ranks=(4,))}, fingerprint={"0": EVIL})
    with pytest.raises(RankfoldError) as caught:
        rf.apply(nn.Sequential(nn.Linear(24, 32)), plan)
    assert clean(str(caught.value))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.warn(EVIL, RankfoldWarning, stacklevel=1)
    assert clean(str(found[0].message))
    assert not list(tmp_path.iterdir())
