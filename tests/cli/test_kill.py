"""``finetune`` and ``train`` are killed at random moments, given again, and end with the same weights bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

KILLS = 6
STEPS = 120

SCRIPT = """
import sys
import torch
from rankfold.cli import app

torch.set_num_threads(1)
app(sys.argv[1:])
"""


class Commands:
    """Starts commands in forks of a process that has imported torch."""

    def __init__(self, warm: Any, folder: Path) -> None:
        self.warm, self.script = warm, folder / "script.py"
        self.script.write_text(SCRIPT)

    def start(self, *args: str | Path) -> int:
        (child,) = self.warm.start(self.script, *args)
        return child

    def ended(self) -> int:
        (status,) = self.warm.ended()
        return status

    def run(self, *args: str | Path) -> str:
        done = self.warm.run(self.script, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def commands(warm: Any, tmp_path: Path) -> Commands:
    return Commands(warm, tmp_path)


def done_steps(checkpoint: Path) -> int:
    """Return how far a checkpoint is, which is whole whatever happened; 0 if there is none yet."""
    return torch.load(checkpoint, weights_only=True)["state"]["step"] if checkpoint.exists() else 0


def kill_often(
    commands: Commands, command: tuple[str | Path, ...], kills: int, checkpoint: Path, output: Path
) -> list[int]:
    """Kill a command at random moments of its training; return the steps that its checkpoint had each time."""
    chance, reached = random.Random(3), list[int]()
    for kill in range(kills):
        child = commands.start(*command)
        if kill:  # the first one dies anywhere, perhaps before it has trained at all
            deadline = time.monotonic() + 60
            while done_steps(checkpoint) <= reached[-1]:
                assert time.monotonic() < deadline, "the run makes no steps"
                time.sleep(0.005)
        time.sleep(chance.random() * 0.08)
        os.kill(child, signal.SIGKILL)
        assert commands.ended() == -signal.SIGKILL, f"kill {kill} came too late, after steps {reached}"
        reached.append(done_steps(checkpoint))
        assert not output.exists()
    assert reached == sorted(reached)
    return reached


@pytest.mark.slow
def test_killed_command_goes_on(tmp_path: Path, artifact: Path, commands: Commands) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = ("--epochs", "4", "--limit-train", "480", "--train-batch-size", "16", "--lr", "0.001", "--augment")
    command = ("finetune", artifact, *options, "--checkpoint-every", "1", "--out")
    commands.run(*command, straight)

    checkpoint = killed / "finetune.pt"
    reached = kill_often(commands, (*command, killed), KILLS, checkpoint, killed / "model.safetensors")
    assert 0 < reached[-1] < STEPS, f"killed after steps {reached}"
    assert len(set(reached)) >= 5, f"killed after steps {reached}"

    said = json.loads(commands.run(*command, killed, "--json"))
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
def test_killed_training_from_scratch_goes_on(tmp_path: Path, commands: Commands) -> None:
    straight, killed = (tmp_path / name / "w.safetensors" for name in ("straight", "killed"))
    command = (
        "train", "lenet5_mnist5k", "--data", "mnist5k", "--limit-train", "192", "--limit-test", "50", "--epochs", "4",
        "--batch-size", "16", "--augment", "--finetune-option", "plateau_patience=0", "--finetune-option", "keep=best",
        "--json", "--out",
    )  # fmt: skip
    wanted = json.loads(commands.run(*command, straight))
    assert wanted["steps"] == 4 * 192 // 16
    often = (*command, killed, "--checkpoint-every", "1")
    reached = kill_often(commands, often, 3, killed.with_suffix(".checkpoint.pt"), killed)
    assert 0 < reached[-1] < wanted["steps"], f"killed after steps {reached}"
    said = json.loads(commands.run(*command, killed))
    assert said["resumed_from"] == reached[-1]
    assert (said["value"], said["kept_epoch"]) == (wanted["value"], wanted["kept_epoch"])
    for ours, theirs in zip(said["history"], wanted["history"], strict=True):
        assert (ours["loss"], ours["lr"], ours["metric"]) == (theirs["loss"], theirs["lr"], theirs["metric"])
    ours, theirs = load_file(killed), load_file(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [path.name for path in killed.parent.iterdir()] == [killed.name]
