"""The loop of ``similarity`` is killed at random moments, started again, and ends with the identical result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rankfold

KILLS = 3

# Imports take seconds, so one process makes them in an uninterrupted run, and then forks a child that runs the loop for
# each line that it reads. Every training is written down when it begins, and takes at least 50 ms.
SCRIPT = """
import hashlib, json, os, sys, time
from dataclasses import asdict
from pathlib import Path
import accelerate, torch
from torch import nn
import rankfold as rf
from rankfold import workbench

torch.set_num_threads(1)
torch.manual_seed(0)
X = torch.randn(64, 3, 8, 8)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.drop = nn.Conv2d(12, 12, 3, padding=1), nn.Dropout(0.05)
        self.fc1, self.fc2 = nn.Linear(12 * 16, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        x = self.drop(torch.relu(x + self.conv2(x)).flatten(1))
        return self.fc2(torch.relu(self.fc1(x)))

def run(folder):
    model, finetune = Net().eval(), workbench.bench.finetune_

    def recorded(*args, **options):
        with (folder / "trainings").open("a") as file:
            file.write("x")
        time.sleep(0.05)
        return finetune(*args, **options)

    workbench.bench.finetune_ = recorded
    recipe = rf.FineTune(data=[X[:32], X[32:]], epochs=2, lr=0.1, distill="mse", loss="distill",
                         checkpoint=folder / "checkpoints")
    strategy = rf.Similarity(drop=0.25, step_size=0.25, max_sol=1, coverage=1.0)
    result = rf.compress(model, X[:1], calibration=[X], evaluate=rf.evaluation.output_error(model, [X]),
                         finetune=recipe, strategy=strategy, methods=("tucker", "tt", "svd"), cache=folder / "cache")
    weights = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in result.model.state_dict().items()}
    rounds = [asdict(row) | {"seconds": None} for row in result.report.rounds]
    layers = {name: choice.to_dict() for name, choice in result.plan.layers.items()}
    outcome = {"weights": weights, "rounds": rounds, "layers": layers, "search": dict(result.plan.provenance.search)}
    (folder / "outcome.json").write_text(json.dumps(outcome))

straight, killed = map(Path, sys.argv[1:])
run(straight)
print(0, flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(killed)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs the loop in one folder, then starts it in another one and says how it ended."""

    def __init__(self, straight: Path, killed: Path) -> None:
        path = str(Path(rankfold.__path__[0]).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(straight), str(killed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}, text=True,  # forks cannot use CUDA
        )  # fmt: skip

    def number(self) -> int:
        """Return the next number: 0 after the uninterrupted run; process id and exit code of each child."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def start(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.number()


def trainings(folder: Path) -> int:
    file = folder / "trainings"
    return len(file.read_text()) if file.exists() else 0


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outcome.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no SIGKILL")
def test_a_killed_loop_resumes_and_ends_identically(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    server = Server(straight, killed)
    with server.process:
        assert server.number() == 0
        wanted = outcome(straight)
        assert {row["run"] for row in wanted["rounds"]} == {"tucker+svd", "tt+svd", "hybrid"}
        assert len(wanted["rounds"]) >= 6
        _kill_often(server, killed)
        assert trainings(killed) < trainings(straight)
        server.start()
        assert server.number() == 0
    assert trainings(killed) <= trainings(straight) + KILLS, "only the training that was interrupted is repeated"
    assert outcome(killed) == wanted


def _kill_often(server: Server, folder: Path) -> None:
    chance, reached = random.Random(7), [0]
    for kill in range(1, KILLS + 1):
        pid, deadline = server.start(), time.monotonic() + 60
        wanted = reached[-1] + chance.choice((2, 3))  # the one that was interrupted is repeated
        while trainings(folder) < wanted:
            assert time.monotonic() < deadline, "the loop makes no rounds"
            time.sleep(0.002)
        time.sleep(chance.random() * 0.2)
        os.kill(pid, signal.SIGKILL)
        assert server.number() == -signal.SIGKILL, f"kill {kill} came too late, after {reached} trainings"
        reached.append(trainings(folder))
        assert not (folder / "outcome.json").exists()
