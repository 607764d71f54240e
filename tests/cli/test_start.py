"""Help, version and start of the command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import rankfold
from rankfold.cli import app
from rankfold.strategies import registry

Run = Callable[..., Any]

COMMANDS = sorted(info.name or "" for info in app.registered_commands)

HEAVY = {"torchvision", "timm", "accelerate", "mlxtend", "pandas", "scipy.optimize", "matplotlib"}


def test_all_commands_are_there() -> None:
    assert {
        "inspect",
        "plan",
        "apply",
        "compress",
        "finetune",
        "evaluate",
        "bench",
        "report",
        "demo",
        "methods",
    } <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(invoke: Run, name: str) -> None:
    done = invoke(name, "--help")
    assert done.code == 0
    command = typer.main.get_group(app).commands[name]
    assert f"Example: rankfold {name} " in " ".join(done.out.split())
    _, example = (command.epilog or "").split("Example: rankfold ")
    first, *args = shlex.split(example)
    assert first == name
    command.make_context(name, args)  # raises for unknown options and arguments


def test_every_option_is_explained() -> None:
    for name, command in typer.main.get_group(app).commands.items():
        silent = [p.name for p in command.params if p.name != "help" and not getattr(p, "help", None)]
        assert not silent, f"{name}: {silent}"


def test_strategies_are_those_of_python() -> None:
    commands = typer.main.get_group(app).commands
    for name in ("plan", "compress", "sweep"):
        (option,) = [p for p in commands[name].params if p.name == "strategy"]
        assert option.default == rankfold.Search().strategy
        named = getattr(option, "help", "").partition(": ")[2].rstrip(".").split(", ")
        assert sorted(named) == sorted(registry.names())
        assert named[0] == option.default


def test_no_arguments_show_the_help(invoke: Run) -> None:
    done = invoke()
    assert "Commands" in done.out + done.err


def test_as_a_module_it_is_light() -> None:
    code = (
        "import json, sys, runpy\n"
        "sys.argv = ['rankfold', '--version']\n"
        "try:\n    runpy.run_module('rankfold', run_name='__main__')\n"
        "except SystemExit as end:\n    print(json.dumps([end.code, sorted(sys.modules)]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(rankfold.__path__[0]).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    version, rest = done.stdout.splitlines()
    assert version == f"rankfold {rankfold.__version__}"
    status, modules = json.loads(rest)
    assert status == 0
    assert not HEAVY & set(modules)
    assert "rankfold.cli" in modules
