"""A search is killed at random moments, started again, and ends with the same plan; nothing is measured twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

KILLS = 3
LAYERS = 14

# Every layer is measured slowly, and written down when that begins.
SCRIPT = f"""
import sys, time
from pathlib import Path
import torch
from torch import nn
import rankfold as rf
from rankfold.candidates.network import NetworkProxy

torch.set_num_threads(1)
torch.manual_seed(0)
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
net = nn.Sequential(*[m for i in range({LAYERS}) for m in (nn.Linear(10 + i, 11 + i), nn.Tanh())]).eval()
losses = NetworkProxy.losses

def slowly(self, layer, weights):
    with log.open("a") as file:
        file.write(f"{{layer.name}} {{len(weights)}}\\n")
    time.sleep(0.05)
    return losses(self, layer, weights)

NetworkProxy.losses = slowly
data = [torch.randn(8, 10), torch.randn(8, 10)]
plan = rf.plan(net, data[0][:1], budget="params<=70%", methods="svd", calibration=data, cache=folder / "cache",
               strategy=rf.CompressNAS(proxy="network", samples=16, points=8))
plan.save(folder / "plan.json")
"""


def finished(folder: Path) -> set[str]:
    """Return the layers whose measurements are on disk."""
    return {json.loads(file.read_text())["key"]["layer"] for file in (folder / "cache").glob("*.json")}


def measured(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path: Path, warm: Any) -> None:
    chance = random.Random(5)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    warm.search(SCRIPT, straight, tmp_path / "straight.log")
    assert warm.ended() == [0], warm.err.read_text()
    assert measured(tmp_path / "straight.log") == dict.fromkeys(finished(straight), 1)
    assert len(finished(straight)) == LAYERS

    reached, done = [], set[str]()
    for kill in range(KILLS):
        log = tmp_path / f"{kill}.log"
        child = warm.search(SCRIPT, killed, log)
        deadline = time.monotonic() + 60
        while not measured(log) or len(finished(killed)) <= len(done):  # it gets somewhere
            assert time.monotonic() < deadline, "the search makes no steps"
            assert warm.running, f"kill {kill} came too late, after {reached}"
            time.sleep(0.005)
        time.sleep(chance.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        assert warm.ended() == [-signal.SIGKILL], f"kill {kill} came too late, after {reached}"
        assert not done & set(measured(log)), "what was on disk is measured again"
        assert max(measured(log).values()) == 1
        assert done < finished(killed)
        done = finished(killed)
        reached.append(len(done))
        assert not (killed / "plan.json").exists()
    assert reached[-1] < LAYERS

    log = tmp_path / "last.log"
    warm.search(SCRIPT, killed, log)
    assert warm.ended() == [0], warm.err.read_text()
    assert measured(log) == dict.fromkeys(finished(straight) - done, 1), "only what was missing"
    assert (killed / "plan.json").read_text() == (straight / "plan.json").read_text()
    files = [sorted((folder / "cache").iterdir()) for folder in (killed, straight)]
    assert [f.name for f in files[0] if f.suffix == ".json"] == [f.name for f in files[1]]
    for ours, theirs in zip((f for f in files[0] if f.suffix == ".json"), files[1], strict=True):
        assert ours.read_text() == theirs.read_text()
