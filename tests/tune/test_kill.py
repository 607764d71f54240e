"""SIGKILL at random moments: the run resumes and ends with the same weights."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

KILLS = 6

# It draws random numbers in every way there is: order, augmentation, dropout; and BatchNorm has statistics.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from rankfold.tune import FineTune, finetune

class Noisy(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        return torch.full((6,), index / 24) + torch.rand(6), index % 3

def run(folder, pause):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    torch.manual_seed(time.time_ns())  # what the global generators hold must not matter

    def tell(info):
        time.sleep(pause)  # many moments to be killed in
        (folder / "marker").touch()

    config = FineTune(
        data=DataLoader(Noisy(), batch_size=5, shuffle=True), epochs=20, lr=0.05,
        checkpoint=folder / "run", checkpoint_every=1,
    )
    result = finetune(model, config, teacher=model, metric=lambda model: 0.0, progress=tell)
    torch.save({"model": result.model.state_dict(), "from": result.resumed_from,
                "history": [e.loss for e in result.history]}, folder / "out")

torch.set_num_threads(1)
run(Path(sys.argv[1]), float(sys.argv[2]))
"""


def start(warm: Any, folder: Path, pause: float) -> int:
    folder.mkdir(exist_ok=True)
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    (child,) = warm.start(script, folder, str(pause))
    return child


def outcome(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "out", weights_only=True)


@pytest.mark.slow
def test_killed_runs_end_alike(tmp_path: Path, warm: Any) -> None:
    chance = random.Random(5)
    folder, reached = tmp_path / "killed", []
    marker = folder / "marker"
    for kill in range(KILLS):
        marker.unlink(missing_ok=True)
        child = start(warm, folder, 0.02)
        deadline = time.monotonic() + 60
        while not marker.exists():
            assert time.monotonic() < deadline, "the run never made a step"
            time.sleep(0.005)
        time.sleep(chance.random() * 0.3)
        os.kill(child, signal.SIGKILL)
        assert warm.ended() == [-signal.SIGKILL], f"kill {kill} came too late"
        # Whatever the moment was, there is a whole checkpoint.
        left = torch.load(folder / "run" / "finetune.pt", weights_only=True)
        reached.append(left["state"]["step"])
    assert reached == sorted(reached)
    assert 0 < reached[-1] < 100, f"killed after steps {reached}"
    for name in ("killed", "straight"):
        start(warm, tmp_path / name, 0.0)
        assert warm.ended() == [0], warm.err.read_text()
    ours, theirs = outcome(folder), outcome(tmp_path / "straight")
    assert theirs["from"] is None
    assert ours["from"] == reached[-1]
    assert all(torch.equal(ours["model"][k], v) for k, v in theirs["model"].items())
    assert ours["history"] == theirs["history"]
    assert len(set(theirs["history"])) == 20, "it trained"
    assert [p.name for p in (folder / "run").iterdir()] == ["finetune.pt"]
