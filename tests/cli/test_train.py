"""``rankfold train`` on a task that is easy to learn: its weights, its record, and its default recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rankfold as rf
from rankfold.errors import DataError
from rankfold.tune import FROM_SCRATCH, FineTune

Run = Callable[..., Any]

NETWORKS = """
import torch
from torch import nn

def plain(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, num_classes)
    )

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())[:, :4]

class Odd(nn.Linear):
    def get_extra_state(self):
        return {"odd": object()}

def odd():
    return nn.Sequential(nn.Flatten(), Odd(64, 4))
"""


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a file of networks, and the data: which quadrant of a noisy 8x8 image is bright."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "networks.py").write_text(NETWORKS)
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 128), ("test", 80)):
        labels = np.arange(count) % 4
        images = draw.random((count, 8, 8), dtype=np.float32) * 0.5
        for image, label in zip(images, labels, strict=True):
            image[label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 0.5
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(folder / "task.npz", **arrays)
    return str(folder / "networks.py"), f"npz:{folder / 'task.npz'}"


def test_training_reaches_the_accuracy_and_writes_weights(run: Run, task: tuple[str, str], tmp_path: Path) -> None:
    network, data = f"{task[0]}:plain", task[1]
    file = tmp_path / "new" / "w.safetensors"
    done = run("train", network, "--data", data, "--epochs", "6", "--lr", "0.01", "--out", file, "--json").document
    assert done["value"] >= 0.95
    assert done["files"] == {"weights": str(file)}
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no checkpoint is left"
    assert (done["metric"], done["samples"], done["steps"], done["kept_epoch"]) == ("top-1", 80, 6 * 4, 6)
    assert [entry["epoch"] for entry in done["history"]] == [1, 2, 3, 4, 5, 6]
    assert done["history"][0]["loss"] > 2 * done["history"][-1]["loss"]
    assert done["history"][-1]["metric"] == done["value"]
    assert done["seconds"] == pytest.approx(sum(entry["seconds"] for entry in done["history"]))
    assert done["resumed_from"] is None
    weights = ("--weights", file, "--data", data)
    assert run("evaluate", network, *weights, "--batch-size", "32", "--json").document["value"] == done["value"]
    small = run(
        "compress", network, *weights, "--budget", "params<=60%", "--out", tmp_path / "small", "--json"
    ).document
    assert small["report"]["metrics"][0]["dense"] == done["value"]
    untrained = rf.zoo.create(network, seed=0).state_dict()
    trained = load_file(file)
    assert trained.keys() == untrained.keys()
    assert not any(torch.equal(trained[name], untrained[name]) for name in trained if name.endswith("weight"))


def test_text_for_people(run: Run, task: tuple[str, str], tmp_path: Path) -> None:
    command = ("train", f"{task[0]}:plain", "--data", task[1], "--epochs", "2", "--out", tmp_path / "w.SafeTensors")
    shown = run(*command).out
    for words in ("Training", "learning rate", "0.0001", "(80 samples), weights of epoch 2", "w.SafeTensors"):
        assert words in shown
    assert run(*command, "-q").out.strip().endswith(" %")


def test_the_best_epoch_and_tied_weights(run: Run, task: tuple[str, str], tmp_path: Path) -> None:
    files = {keep: tmp_path / f"{keep}.safetensors" for keep in ("best", "last", "short")}
    command = ("train", f"{task[0]}:Tied", "--data", task[1], "--lr", "0.01", "--finetune-option", "schedule=constant")
    command = (*command, "--hold-out", "28")
    best, last = (
        run(*command, "--epochs", "6", "--finetune-option", f"keep={keep}", "--out", files[keep], "--json").document
        for keep in ("best", "last")
    )
    metrics = [entry["metric"] for entry in best["history"]]
    assert all(28 * metric == pytest.approx(round(28 * metric)) for metric in metrics), "of the held-out images"
    assert best["kept_epoch"] == metrics.index(max(metrics)) + 1 < last["kept_epoch"] == 6
    run(*command, "--epochs", best["kept_epoch"], "--out", files["short"])
    weights = {keep: load_file(file) for keep, file in files.items()}
    for name, tensor in weights["best"].items():
        assert torch.equal(tensor, weights["short"][name])
        assert not torch.equal(tensor, weights["last"][name])
    assert torch.equal(weights["best"]["a.weight"], weights["best"]["b.weight"])


def test_the_default_recipe(
    invoke: Run, fail: Run, task: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FineTune] = []

    def stop(model: torch.nn.Module, recipe: FineTune, **_: object) -> None:
        seen.append(recipe)
        raise DataError("stopped")

    monkeypatch.setattr(rf, "finetune_", stop)
    command = ("train", f"{task[0]}:plain", "--data", task[1], "--out", tmp_path / "w.safetensors")
    assert "stopped" in fail(*command).err
    fail(*command, "--optimizer", "sgd", "--seed", "3", "--finetune-option", "schedule=cosine", "--batch-size", "16")
    paper, other = seen
    assert replace(paper, data=None, checkpoint=None) == FROM_SCRATCH
    assert paper.checkpoint == str(tmp_path / "w.checkpoint.pt")
    assert [len(recipe.data or ()) for recipe in seen] == [128 // 32, 128 // 16]  # pyright: ignore[reportArgumentType]
    assert (other.optimizer, other.peak_lr, other.schedule, other.seed) == ("sgd", 0.02, "cosine", 3)


def test_what_cannot_be_trained_or_saved(fail: Run, run: Run, task: tuple[str, str], tmp_path: Path) -> None:
    """The message names the cause, nothing is written, and the corrected command works."""
    file = tmp_path / "w.safetensors"
    command = ("train", f"{task[0]}:plain", "--data", task[1], "--epochs", "1", "--out", file)
    assert "out of range: the model has 2 classes" in fail(*command, "--num-classes", "2").err
    assert "'1._extra_state'" in fail("train", f"{task[0]}:odd", *command[2:]).err
    assert "--finetune-option does not take 'lr'" in fail(*command, "--finetune-option", "lr=1").err
    assert list(tmp_path.iterdir()) == []
    run(*command)
