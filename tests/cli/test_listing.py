"""Methods and strategies are listed as they are registered, with their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from rankfold import methods, strategies

Run = Callable[..., Any]

REGISTRIES = {"methods": methods.registry, "strategies": strategies.registry}


@pytest.mark.parametrize("command", REGISTRIES)
def test_everything_registered_is_listed(run: Run, command: str) -> None:
    document = run(command, "--json").document
    assert document["command"] == command
    listed = {one["name"]: one for one in document[command]}
    assert list(listed) == REGISTRIES[command].names()
    for entry in REGISTRIES[command]:
        one = listed[entry.plugin.name]
        assert (one["summary"], one["class"]) == (entry.summary, entry.plugin.__name__)
        assert [option["name"] for option in one["options"]] == [f.name for f in dataclasses.fields(entry.plugin)]
        for option in one["options"]:
            assert option["type"]
            assert option["help"].endswith(".")
    assert run(command, "-q").out.split() == REGISTRIES[command].names()


@pytest.mark.parametrize("command", REGISTRIES)
def test_text_for_people(run: Run, command: str) -> None:
    words = " ".join(run(command).out.split())
    for entry in REGISTRIES[command]:
        assert entry.plugin.name in words
        for field in dataclasses.fields(entry.plugin):
            assert field.name in words


def test_one_method(run: Run) -> None:
    (one,) = run("methods", "qr", "--json").document["methods"]
    (option,) = one["options"]
    assert (one["name"], option["name"], option["type"], option["default"]) == ("qr", "pivoting", "bool", True)
    shown = run("methods", "qr").out
    assert "pivoting" in shown
    assert "In Python: rankfold.QR(pivoting=True)" in shown
    assert "``" not in shown
    assert "Parameters" not in shown
    assert "Options" not in run("methods", "svd").out


def test_items_of_a_list_start_lines(run: Run) -> None:
    (one,) = run("strategies", "rene", "--json").document["strategies"]
    assert any(paragraph.startswith("- Loops. ") for paragraph in one["description"])
    shown = run("strategies", "similarity").out
    assert "\n2. The compressed model is fine-tuned once" in shown
    assert "**" not in shown + "".join(one["description"])


def test_inherited_options_are_explained(run: Run) -> None:
    (one,) = run("strategies", "compressnas", "--json").document["strategies"]
    options = {option["name"]: option for option in one["options"]}
    assert options["proxy"]["default"] == "auto"
    assert '"fisher"' in options["proxy"]["type"]
    assert options["taps"]["default"] == []


@pytest.mark.parametrize(
    ("command", "name", "near"), [("methods", "tuker", "tucker"), ("strategies", "enrgy", "energy")]
)
def test_unknown_names(fail: Run, command: str, name: str, near: str) -> None:
    assert f"Did you mean '{near}'" in fail(command, name).err
