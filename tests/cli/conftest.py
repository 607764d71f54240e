"""Run commands in this process, and provide a small artifact."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankfold.cli import app

# Before click 8.2, which the oldest supported typer is installed with, the two streams are mixed by default.
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
SMALL = ("--weights", "bundled", "--data", "mnist5k", "--limit-test", "200", "--calibration-images", "64")


class Done:
    """Exit code and output of a command."""

    def __init__(self, result: Any) -> None:
        self.code: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document on standard output, which has no other content."""
        return json.loads(self.out)


def _invoke(*args: str | Path) -> Done:
    runner = CliRunner(env={"COLUMNS": "100"}, **_APART)
    return Done(runner.invoke(app, [str(a) for a in args], prog_name="rankfold"))


@pytest.fixture
def invoke() -> Callable[..., Done]:
    """Return a function that runs a command, whatever its exit code."""
    return _invoke


@pytest.fixture
def small() -> tuple[str, ...]:
    """Return a network, weights and little data, as arguments."""
    return ("lenet5_mnist5k", *SMALL)


@pytest.fixture
def run() -> Callable[..., Done]:
    """Return a function that runs a command and expects it to succeed."""

    def checked(*args: str | Path) -> Done:
        done = _invoke(*args)
        assert done.code == 0, done.err
        return done

    return checked


@pytest.fixture
def fail() -> Callable[..., Done]:
    """Return a function that runs a command and expects an error message and exit code 2."""

    def checked(*args: str | Path) -> Done:
        done = _invoke(*args)
        assert done.code == 2, (done.code, done.out, done.err)
        assert "Traceback" not in done.err
        assert not done.out.strip()
        return done

    return checked


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a LeNet-5 compressed on digits; tests must not change it."""
    folder = tmp_path_factory.mktemp("cli") / "small"
    done = _invoke("compress", "lenet5_mnist5k", *SMALL, "--budget", "params<=25%", "--out", folder)
    assert done.code == 0, done.err
    return folder
