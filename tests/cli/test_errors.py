"""Bad input: exit code 2, a message that names the input, no traceback, nothing on standard output, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankfold import zoo

Run = Callable[..., Any]

COMPRESS = ("compress", "lenet5_mnist5k", "--out", "{new}")
TRAIN = ("train", "lenet5_mnist5k", "--data", "mnist5k")

EARLY = {
    "unknown command": (("compres",), "compres"),
    "no command's argument": (("inspect",), "MODEL"),
    "no output": (("finetune", "{artifact}"), "--out"),
    "unknown option": ((*COMPRESS, "--budgt", "params/2"), "--budgt"),
    "unknown network": (("inspect", "lenet5_mnist5"), "Did you mean 'lenet5_mnist5k'"),
    "unknown strategy": ((*COMPRESS, "-s", "enrgy"), "Did you mean 'energy'"),
    "unknown method": ((*COMPRESS, "--methods", "svd,tuker"), "Did you mean 'tucker'"),
    "unreadable budget": ((*COMPRESS, "-b", "a quarter"), "'a quarter'"),
    "budget of nothing": ((*COMPRESS, "-b", "params<=0"), "params<=0"),
    "unknown resource": ((*COMPRESS, "-b", "parms<=50%"), "Did you mean 'params'"),
    "unknown strategy option": ((*COMPRESS, "-s", "energy", "--strategy-option", "kep=0.9"), "Did you mean 'keep'"),
    "strategy option without value": ((*COMPRESS, "--strategy-option", "keep"), "KEY=VALUE"),
    "strategy option out of range": ((*COMPRESS, "-s", "energy", "--strategy-option", "keep=1.5"), "1.5"),
    "override without method": ((*COMPRESS, "--override", "conv1=8"), "'conv1=8'"),
    "override without ranks": ((*COMPRESS, "--override", "conv1=svd:many"), "'conv1=svd:many'"),
    "unknown reconstruction": ((*COMPRESS, "--reconstruct", "sequentially"), "Did you mean 'sequential'"),
    "reconstruction without data": ((*COMPRESS, "--reconstruct", "sequential"), "--data"),
    "unknown device": ((*COMPRESS, "--device", "gpu"), "'gpu'"),
    "input of no size": ((*COMPRESS, "--input-size", "1,one,28,28"), "'1,one,28,28'"),
    "negative seed": ((*COMPRESS, "--seed", "-1"), "--seed"),
    "no images": ((*COMPRESS, "--calibration-images", "0"), "--calibration-images"),
    "epochs without data": ((*COMPRESS, "--epochs", "2"), "--data"),
    "unknown loss": ((*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--loss", "distil"), "Did you mean 'distill'"),
    "learning rate of nothing": ((*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--lr", "0"), "lr"),
    "unknown optimizer": ((*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--optimizer", "adam-w"), "'adamw'"),
    "unknown fine-tuning option": (
        (*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--finetune-option", "tempratur=2"),
        "Did you mean 'temperature'",
    ),
    "fine-tuning option of its own": (
        (*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--finetune-option", "max_steps=2"),
        "--max-steps",
    ),
    "fine-tuning option out of range": (
        (*COMPRESS, "--data", "mnist5k", "--epochs", "1", "--finetune-option", "temperature=0"),
        "temperature",
    ),
    "output is a file": (("compress", "lenet5_mnist5k", "--out", "{file}"), "is a file"),
    "output below a file": (("compress", "lenet5_mnist5k", "--out", "{file}/out"), "{file}"),
    "output of others": (("compress", "lenet5_mnist5k", "--out", "{others}"), "'diary.txt'"),
    "demo's output is a file": (("demo", "--out", "{file}"), "is a file"),
    "plan's output has no suffix": (("plan", "lenet5_mnist5k", "-o", "{new}"), ".json"),
    "plan's output is a folder": (("plan", "lenet5_mnist5k", "-o", "{others}"), "is a folder"),
    "no plan": (("apply", "lenet5_mnist5k", "--plan", "{new}.json", "--out", "{new}"), "{new}.json"),
    "no artifact": (("evaluate", "{new}/"), "does not exist"),
    "artifact is a file": (("bench", "{file}"), "is a file"),
    "network unknown": (("evaluate", "{others}"), "--model"),
    "neither network nor artifact": (("evaluate", "nowhere"), "There is no folder 'nowhere' either"),
    "evaluate without data": (("evaluate", "lenet5_mnist5k"), "--data"),
    "model of a model": (("evaluate", "lenet5_mnist5k", "--model", "lenet5_mnist5k"), "--model"),
    "no report": (("report", "{others}"), "no report"),
    "report of unknown form": (("report", "{others}", "-o", "{new}.pdf"), ".html"),
    "train without output": (("train", "lenet5_mnist5k", "--data", "mnist5k"), "--out"),
    "train without data": (("train", "lenet5_mnist5k", "--out", "{new}.safetensors"), "--data"),
    "train's output has another suffix": ((*TRAIN, "--out", "{new}.pt"), ".safetensors"),
    "train's output is a folder": ((*TRAIN, "--out", "{others}"), "is a folder"),
    "train for no epochs": ((*TRAIN, "--out", "{new}.safetensors", "--epochs", "0"), "--epochs"),
    "train from weights": ((*TRAIN, "--out", "{new}.safetensors", "--weights", "bundled"), "--weights"),
    "train on an unknown device": ((*TRAIN, "--out", "{new}.safetensors", "--device", "gpu"), "'gpu'"),
    "train an unknown network": (("train", "lenet5", *TRAIN[2:], "--out", "{new}.safetensors"), "Did you mean"),
    "finetune without data": (("finetune", "{others}", "--model", "lenet5_mnist5k", "--out", "{new}"), "--data"),
}

LATE = {
    "no such weights": ((*COMPRESS, "--weights", "{new}.safetensors"), "does not exist"),
    "weights of another network": ((*COMPRESS, "--weights", "{weights}"), "do not fit"),
    "unknown data": ((*COMPRESS, "--data", "mnist5"), "Did you mean 'mnist5k'"),
    "data without its path": ((*COMPRESS, "--data", "cifar10:"), "path"),
    "no such data": ((*COMPRESS, "--data", "cifar10:{new}"), "{new}"),
    "unreachable budget": ((*COMPRESS, "-b", "params<=0.1%"), "least reachable"),
    "pattern that matches nothing": ((*COMPRESS, "--include", "layer9.*"), "layer9.*"),
    "override that matches nothing": ((*COMPRESS, "--override", "conv9=keep"), "conv9"),
    "override of too large a rank": ((*COMPRESS, "--override", "fc3=svd:99"), "99"),
    "input of the wrong shape": ((*COMPRESS, "--input-size", "1,3,28,28"), "1, 3, 28, 28"),
    "remedy for the wrong shape": ((*COMPRESS, "--input-size", "1,3,28,28"), "Correct --input-size"),
    "more places than classes": (
        ("evaluate", "lenet5_mnist5k", "--data", "mnist5k", "--weights", "bundled", "--top", "11"),
        "--top must be at most the number of classes, 10",
    ),
    "artifact of another network": (("evaluate", "{artifact}", "--model", "resnet20_cifar10"), "conv1"),
    "truncated artifact": (("evaluate", "{truncated}"), "damaged"),
    "edited artifact": (("evaluate", "{edited}"), "edited"),
    "damaged source": (("evaluate", "{source}"), "source.json"),
    "plan of another network": (
        ("apply", "resnet20_cifar10", "--plan", "{artifact}", "--out", "{new}"),
        "fc1",
    ),
    "rank 0 in a plan": (("apply", "lenet5_mnist5k", "--plan", "{rank0}", "--out", "{new}"), "rank"),
    "no iterator": ((*COMPRESS, "--data", "{script}:once"), "iterator"),
    "finetune onto itself": (("finetune", "{artifact}", "--out", "{artifact}"), "itself"),
    "agreement with itself": (("evaluate", "lenet5_mnist5k", "--data", "mnist5k", "--agreement"), "original"),
}


@pytest.fixture
def places(tmp_path: Path, artifact: Path) -> dict[str, str]:
    """Return the paths that the tables refer to."""
    found = {"new": tmp_path / "new", "artifact": artifact}
    found["file"] = tmp_path / "file.txt"
    found["file"].write_text("words")
    found["others"] = tmp_path / "others"
    found["others"].mkdir()
    (found["others"] / "diary.txt").write_text("words")
    found["weights"] = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(1)}, found["weights"])
    found["script"] = tmp_path / "mine.py"
    found["script"].write_text("def once(split, batch_size):\n    return iter([])\n")
    for name in ("truncated", "edited", "source"):
        found[name] = tmp_path / name
        shutil.copytree(artifact, found[name])
    weights = (found["truncated"] / "model.safetensors").read_bytes()
    (found["truncated"] / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    plan = json.loads((artifact / "plan.json").read_text())
    plan["layers"]["fc1"]["ranks"] = [5]
    (found["edited"] / "plan.json").write_text(json.dumps(plan))
    plan["layers"]["fc1"]["ranks"] = [0]
    found["rank0"] = tmp_path / "rank0.json"
    found["rank0"].write_text(json.dumps(plan))
    (found["source"] / "source.json").write_text('{"format": "rankfold-source", "version": 1, "model": 5}')
    return {name: str(path) for name, path in found.items()}


def check(fail: Run, places: dict[str, str], args: tuple[str, ...], words: str) -> None:
    before = {p for p in Path(places["file"]).parent.rglob("*") if "__pycache__" not in p.parts}
    done = fail(*(arg.format(**places) for arg in args))
    unwrapped = " ".join(done.err.replace("│", " ").split())
    assert words.format(**places) in unwrapped, done.err
    after = {p for p in Path(places["file"]).parent.rglob("*") if "__pycache__" not in p.parts}
    assert after == before, "something was written"


@pytest.mark.parametrize("name", EARLY)
def test_found_before_any_work(fail: Run, places: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a model was built or data was read")

    monkeypatch.setattr(zoo, "create", work)
    monkeypatch.setattr(zoo, "data", work)
    check(fail, places, *EARLY[name])


@pytest.mark.parametrize("name", LATE)
def test_found_on_the_way(fail: Run, places: dict[str, str], name: str) -> None:
    check(fail, places, *LATE[name])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no file system that nobody can write to")
def test_output_that_cannot_be_written(fail: Run) -> None:
    assert "cannot write" in fail("compress", "lenet5_mnist5k", "-b", "params/2", "--out", "/proc/self/out").err


def test_warnings_are_one_line(invoke: Run, tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in zoo.create("lenet5_mnist5k", weights="bundled").state_dict().items()}
    torch.save(state, tmp_path / "wrapped.pt")
    done = invoke("inspect", "lenet5_mnist5k", "--weights", tmp_path / "wrapped.pt", "-q")
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: removed the wrapper prefix 'module.'")
    assert ".py" not in line


def test_interrupt(invoke: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "create", interrupted)
    done = invoke("compress", "lenet5_mnist5k", "--out", tmp_path / "out")
    assert (done.code, done.err) == (130, "interrupted\n")
    assert not (tmp_path / "out").exists()


def test_bugs_say_so(invoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(zoo, "create", broken)
    done = invoke("inspect", "lenet5_mnist5k")
    assert done.code == 1
    assert "unexpected error: ZeroDivisionError: of all things" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in invoke("--traceback", "inspect", "lenet5_mnist5k").err
    assert "Traceback" not in invoke("inspect", "lenet5_mnist5k").err, "the option holds for one command"


def test_checkpoint_of_another_run(run: Run, fail: Run, artifact: Path, tmp_path: Path) -> None:
    """The message names the command-line option that resolves the error, and the option works."""
    command = (
        "finetune",
        artifact,
        "--limit-train",
        "64",
        "--checkpoint",
        tmp_path / "run.pt",
        "--out",
        tmp_path / "o",
    )
    run(*command, "--epochs", "1")
    assert "--restart" in fail(*command, "--epochs", "2").err
    run(*command, "--epochs", "2", "--restart")
