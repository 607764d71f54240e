"""``finetune`` and ``train`` are killed at random moments, given again, and end with the same weights bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankfold

KILLS = 6
STEPS = 120

# Importing torch and reading the digits take seconds, so one process does both, and forks a child that runs the command
# for each line of arguments that it reads.
SCRIPT = """
import json, os, sys
import accelerate, torch
from rankfold import zoo
from rankfold.cli import app

torch.set_num_threads(1)
zoo.data("mnist5k", split="train")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        log, *args = json.loads(line)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        code = 1
        try:
            app(args)
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts a command and returns its process id; says how it ended."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONPATH": str(Path(rankfold.__path__[0]).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *args: str | Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(a) for a in (self.log, *args)]) + "\n")
        self.process.stdin.flush()
        return self.ended()

    def ended(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server") / "log")
    with found.process:
        yield found
        assert found.process.stdin is not None
        found.process.stdin.close()


def done_steps(checkpoint: Path) -> int:
    """Return how far a checkpoint is, which is whole whatever happened; 0 if there is none yet."""
    return torch.load(checkpoint, weights_only=True)["state"]["step"] if checkpoint.exists() else 0


def kill_often(
    server: Server, command: tuple[str | Path, ...], kills: int, checkpoint: Path, output: Path
) -> list[int]:
    """Kill a command at random moments of its training; return the steps that its checkpoint had each time."""
    chance, reached = random.Random(3), list[int]()
    for kill in range(kills):
        child = server.start(*command)
        if kill:  # the first one dies anywhere, perhaps before it has trained at all
            deadline = time.monotonic() + 60
            while done_steps(checkpoint) <= reached[-1]:
                assert time.monotonic() < deadline, "the run makes no steps"
                time.sleep(0.005)
        time.sleep(chance.random() * 0.08)
        os.kill(child, signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL, f"kill {kill} came too late, after steps {reached}"
        reached.append(done_steps(checkpoint))
        assert not output.exists()
    assert reached == sorted(reached)
    return reached


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no SIGKILL")
def test_killed_command_goes_on(tmp_path: Path, artifact: Path, server: Server) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = ("--epochs", "4", "--limit-train", "480", "--train-batch-size", "16", "--lr", "0.001", "--augment")
    command = ("finetune", artifact, *options, "--checkpoint-every", "1", "--out")
    server.start(*command, straight)
    assert server.ended() == 0

    checkpoint = killed / "finetune.pt"
    reached = kill_often(server, (*command, killed), KILLS, checkpoint, killed / "model.safetensors")
    assert 0 < reached[-1] < STEPS, f"killed after steps {reached}"
    assert len(set(reached)) >= 5, f"killed after steps {reached}"

    server.start(*command, killed, "--json")
    assert server.ended() == 0
    said = json.loads(server.log.read_text())
    assert (said["resumed_from"], said["steps"]) == (reached[-1], STEPS)
    ours, theirs, before = (load_file(folder / "model.safetensors") for folder in (killed, straight, artifact))
    assert ours.keys() == theirs.keys() == before.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(torch.equal(ours[name], before[name]) for name in theirs if name.endswith("weight")), "it trained"
    reports = [json.loads((folder / "report.json").read_text()) for folder in (killed, straight)]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert [row["loss"] for row in reports[0]["history"]] == [row["loss"] for row in reports[1]["history"]]
    assert not checkpoint.exists()
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in straight.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no SIGKILL")
def test_killed_training_from_scratch_goes_on(tmp_path: Path, server: Server) -> None:
    straight, killed = (tmp_path / name / "w.safetensors" for name in ("straight", "killed"))
    command = (
        "train", "lenet5_mnist5k", "--data", "mnist5k", "--limit-train", "192", "--limit-test", "50", "--epochs", "4",
        "--batch-size", "16", "--augment", "--finetune-option", "plateau_patience=0", "--finetune-option", "keep=best",
        "--json", "--out",
    )  # fmt: skip
    server.start(*command, straight)
    assert server.ended() == 0
    wanted = json.loads(server.log.read_text())
    assert wanted["steps"] == 4 * 192 // 16
    often = (*command, killed, "--checkpoint-every", "1")
    reached = kill_often(server, often, 3, killed.with_suffix(".checkpoint.pt"), killed)
    assert 0 < reached[-1] < wanted["steps"], f"killed after steps {reached}"
    server.start(*command, killed)
    assert server.ended() == 0
    said = json.loads(server.log.read_text())
    assert said["resumed_from"] == reached[-1]
    assert (said["value"], said["kept_epoch"]) == (wanted["value"], wanted["kept_epoch"])
    for ours, theirs in zip(said["history"], wanted["history"], strict=True):
        assert (ours["loss"], ours["lr"], ours["metric"]) == (theirs["loss"], theirs["lr"], theirs["metric"])
    ours, theirs = load_file(killed), load_file(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [path.name for path in killed.parent.iterdir()] == [killed.name]
