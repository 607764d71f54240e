"""What C code prints inside does not reach standard output."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.optimize

from rankfold.strategies import _knapsack, _stdout

SCRIPT = """
import ctypes, os, sys, threading
from rankfold.strategies._stdout import prints_to_stderr

c = ctypes.CDLL(None)
def both(text):
    c.printf((text + " of C\\n").encode())
    print(text, "of Python")

both("before")
with prints_to_stderr():
    both("inside")
def again():
    with prints_to_stderr():
        both("thread")
threads = [threading.Thread(target=again) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
try:
    with prints_to_stderr():
        both("failing")
        raise KeyError
except KeyError:
    pass
both("after")
if "closed" in sys.argv:
    os.close(2)
    with prints_to_stderr():
        both("closed")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="finds printf in the process")
def test_prints_of_c_and_python() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{when} of {who}" for when in ("before", "after") for who in ("C", "Python")
    )
    said = done.stderr.splitlines()
    assert said.count("inside of C") == said.count("inside of Python") == said.count("failing of C") == 1
    assert said.count("thread of C") == said.count("thread of Python") == 8


@pytest.mark.skipif(sys.platform == "win32", reason="finds printf in the process")
def test_without_standard_error_nothing_is_redirected() -> None:
    command = [sys.executable, "-c", SCRIPT, "closed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert {"closed of C", "closed of Python"} <= set(done.stdout.splitlines())


def test_the_solver_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    milp = scipy.optimize.milp

    def watched(*args: object, **kwargs: object) -> object:
        free = threading.Thread(target=lambda: inside.append(_stdout._ONE_AT_A_TIME.locked()))
        free.start()
        free.join()
        return milp(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(scipy.optimize, "milp", watched)
    option = _knapsack.Options(damage=np.array([1.0, 0.0]), costs=np.array([[0], [2]]))
    assert _knapsack.solve([option], [1]) is not None
    assert inside == [True]
    assert not _stdout._ONE_AT_A_TIME.locked()
