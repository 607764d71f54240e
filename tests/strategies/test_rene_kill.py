"""A search of the strategy ``rene`` is killed, started again, and ends with the same plan; no stage is repeated."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 3

# Every stage is searched slowly, and written down when that begins.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from torch import nn
import rankfold as rf
from rankfold.strategies import rene

torch.set_num_threads(1)
torch.manual_seed(0)
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)).eval()
coefficients = rene._Search._coefficients

def slowly(self, axes, values, scale):
    with log.open("a") as file:
        file.write(f"{scale} {[len(row) for row in values]} {[row[0] for row in values]}\\n")
    time.sleep(0.05)
    return coefficients(self, axes, values, scale)

rene._Search._coefficients = slowly
data = [(torch.randn(8, 20), torch.arange(8) % 4) for _ in range(2)]
strategy = rf.RENE(
    objective="validation", factors="sgd", rank_max=12, step=4, shrink=4, iterations=6, warm_iterations=2
)
plan = rf.plan(
    net, data[0][0][:1], budget="params<=60%", strategy=strategy, calibration=data, cache=folder / "cache"
)
plan.save(folder / "plan.json")
"""


def searched(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_a_killed_search_resumes(tmp_path: Path, warm: Any) -> None:
    chance = random.Random(3)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    warm.search(SCRIPT, straight, tmp_path / "straight.log")
    assert warm.ended() == [0], warm.err.read_text()
    stages = searched(tmp_path / "straight.log")
    assert len(stages) == len(set(stages)) >= 2 * KILLS

    begun: list[str] = []
    for kill in range(KILLS):
        log = tmp_path / f"{kill}.log"
        child = warm.search(SCRIPT, killed, log)
        deadline = time.monotonic() + 60
        while len(searched(log)) < 2:  # the first of them is finished
            assert time.monotonic() < deadline, "the search makes no steps"
            assert warm.running, f"kill {kill} came too late, after {begun}"
            time.sleep(0.005)
        time.sleep(chance.random() * 0.04)
        os.kill(child, signal.SIGKILL)
        assert warm.ended() == [-signal.SIGKILL], f"kill {kill} came too late, after {begun}"
        assert searched(log)[0] not in begun[:-1], "a finished stage is searched again"
        begun = [*begun[:-1], *searched(log)]
        assert not (killed / "plan.json").exists()

    warm.search(SCRIPT, killed, tmp_path / "last.log")
    assert warm.ended() == [0], warm.err.read_text()
    assert [*begun[:-1], *searched(tmp_path / "last.log")] == stages
    assert (killed / "plan.json").read_text() == (straight / "plan.json").read_text()
