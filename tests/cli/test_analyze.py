"""``rankfold analyze``: tables, JSON, a page, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankfold import zoo
from rankfold.cli.analyzing import parse_steps
from rankfold.errors import ConfigError

Run = Callable[..., Any]
CONV = ("--layer", "conv:3x3x16x16")


def test_tables(run: Run) -> None:
    done = run("analyze", *CONV, "-l", "linear:40x30", "--steps", "80%,50%", "--cores", "2")
    assert "Exploration space of convolutions (Tables 2 and 3)" in done.out
    assert "Scores of linear layers" in done.out
    assert done.err == ""


def test_json(run: Run) -> None:
    document = run("analyze", *CONV, "--methods", "tt", "--random", "2", "--steps", "every=25%", "--json").document
    assert document["command"] == "analyze"
    (layer,) = document["analysis"]["layers"]
    (space,) = layer["spaces"]
    assert [step["reduction"] for step in space["steps"]] == [0.25, 0.5, 0.75]
    assert len(space["steps"][1]["random"]) == 2
    again = run("analyze", *CONV, "--methods", "tt", "--random", "2", "--steps", "every=25%", "--json").document
    assert again == document
    other = run("analyze", *CONV, "--methods", "tt", "--random", "2", "--steps", "every=25%", "--json", "--seed", "1")
    assert other.document["analysis"]["layers"] != document["analysis"]["layers"]


def test_a_network_and_its_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "spaces.html"
    done = run("analyze", "lenet5_mnist5k", "--exclude", "fc1", "--methods", "svd,tucker", "--html", page, "--quiet")
    assert done.out.endswith("valid rank settings of 4 layers\n")
    assert len(done.out.splitlines()) == 1
    assert "lenet5_mnist5k" in page.read_text("utf-8")
    assert list(page.parent.iterdir()) == [page]


def test_a_wider_tolerance_finds_more(run: Run) -> None:
    def count(width: str) -> int:
        args = ("analyze", *CONV, "--methods", "tt", "--steps", "60%", "--tolerance", width, "--json")
        return run(*args).document["analysis"]["layers"][0]["spaces"][0]["steps"][0]["count"]

    assert 0 < count("0.5%") < count("0.02") < count("20%")


def test_useless_ranks_can_be_left_out(run: Run) -> None:
    args = ("analyze", *CONV, "--methods", "tt", "--json")
    every, useful = (run(*args, *more).document["analysis"] for more in ((), ("--useful",)))
    assert useful["useful"] is True
    assert 0 < useful["layers"][0]["spaces"][0]["size"] < every["layers"][0]["spaces"][0]["size"]


def test_times(run: Run) -> None:
    document = run("analyze", "-l", "linear:400x120", "--methods", "svd", "--time", "--json").document
    assert document["analysis"]["averages"][0]["seconds"] > 0


BAD = {
    "nothing": ((), "either a network or layers"),
    "both": (("lenet5_mnist5k", *CONV), "either a network or layers"),
    "unknown network": (("lenet5",), "Did you mean"),
    "bad layer": (("-l", "conv:3x3"), "conv:3x3"),
    "no method fits": (("-l", "linear:8x8", "--methods", "tt"), "only supports convolutions"),
    "unknown method": (("lenet5_mnist5k", "--methods", "tuker"), "Did you mean 'tucker'"),
    "steps": (("lenet5_mnist5k", "--steps", "85"), "85%"),
    "steps, words": (("lenet5_mnist5k", "--steps", "every"), "every=5%"),
    "steps, none": (("lenet5_mnist5k", "--steps", "every=0%"), "every=5%"),
    "steps, twice": (("-l", "linear:8x8", "--steps", "50%,0.5"), "different"),
    "tolerance": ((*CONV, "--tolerance", "half"), "--tolerance must be"),
    "tolerance of nothing": ((*CONV, "--tolerance", "0"), "--tolerance must be"),
    "random": ((*CONV, "--random", "-1"), "--random"),
    "cores": ((*CONV, "--cores", "1"), "--cores"),
    "html": ((*CONV, "--html", "{folder}/page.pdf"), "--html must end in .html"),
    "html is a folder": ((*CONV, "--html", "{folder}"), "is a folder"),
    "weights without a network": ((*CONV, "--weights", "bundled"), "--weights requires a network"),
    "device without a network": ((*CONV, "--device", "cpu"), "--device requires a network"),
    "include without a network": ((*CONV, "--include", "fc"), "--include requires a network"),
    "size": (("lenet5_mnist5k", "--input-size", "one"), "'one'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(fail: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(zoo, "create", work)
    args, words = BAD[name]
    page = () if "--html" in args else ("--html", str(tmp_path / "page.html"))
    done = fail("analyze", *(arg.format(folder=tmp_path) for arg in args), *page)
    assert words in " ".join(done.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_steps() -> None:
    assert parse_steps("85%, 60%,0.25") == (0.85, 0.6, 0.25)
    assert parse_steps("every=10%") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert len(parse_steps("every=1%")) == 99
    for text in ("", "85", "1.0", "every=100%", "every=0.01%", "-5%", "every=", "1/0"):
        with pytest.raises(ConfigError, match="--steps must be"):
            parse_steps(text)
