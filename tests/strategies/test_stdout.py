"""What C code prints inside does not reach standard output; what Python prints does."""

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
from rankfold.strategies._stdout import without_c_prints

c = ctypes.CDLL(None)
def both(text):
    c.printf((text + " of C\\n").encode())
    print(text, "of Python")

both("before")
with without_c_prints():
    both("inside")
def again():
    with without_c_prints():
        both("thread")
threads = [threading.Thread(target=again) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
try:
    with without_c_prints():
        both("failing")
        raise KeyError
except KeyError:
    pass
both("after")
held = []
def hold():
    held.append(sys.stdout)
    started.wait()
    print("held", file=held[0])
started = threading.Event()
with without_c_prints():
    other = threading.Thread(target=hold)
    other.start()
    while not held:
        pass
started.set()
other.join()
if "closed" in sys.argv:
    sys.stdout.flush()
    os.close(1)
    with without_c_prints():
        pass
    sys.stdout = sys.stderr
    print("still here")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="finds printf in the process")
def test_prints_of_c_and_python() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    inside = [*["thread of Python"] * 8, "inside of Python", "failing of Python"]
    outside = [f"{when} of {who}" for when in ("before", "after") for who in ("C", "Python")]
    assert sorted(done.stdout.splitlines()) == sorted([*outside, *inside, "held"])
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="finds printf in the process")
def test_without_standard_output_nothing_is_redirected() -> None:
    command = [sys.executable, "-c", SCRIPT, "closed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == "still here\n", done.stderr


def test_the_solver_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    milp = scipy.optimize.milp

    def watched(*args: object, **kwargs: object) -> object:
        free = threading.Thread(target=lambda: inside.append(_stdout._ONE_AT_A_TIME.locked()))
        free.start()
        free.join()
        return milp(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(scipy.optimize, "milp", watched)
    before = sys.stdout
    option = _knapsack.Options(loss=np.array([1.0, 0.0]), costs=np.array([[0], [2]]))
    assert _knapsack.solve([option], [1]) is not None
    assert inside == [True]
    assert sys.stdout is before
    assert not _stdout._ONE_AT_A_TIME.locked()
