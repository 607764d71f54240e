"""Saves are atomic: a kill at any instant leaves the old or the new artifact whole, and readers see no mixture."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import rankfold as rf
from rankfold._files import locked, sweep, write_text
from rankfold.cli import app
from rankfold.cli._source import Source
from rankfold.errors import CorruptArtifact, RankfoldError
from rankfold.reporting import Report
from rankfold.storage import artifact_bytes, artifact_identity, check_output, folder


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"trust_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


kills: Any = _script("kills")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no SIGKILL")

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"}


def _killed_at(step: int, folder: Path, work: Any) -> bool:
    """Run work in a child that dies before its file operation of this number; return False if it had fewer."""

    def dying() -> None:
        seen = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS and str(folder) in "".join(map(str, args)):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return kills.ended(kills.child(dying)) == -signal.SIGKILL


@forks
@pytest.mark.slow
@pytest.mark.parametrize("start", ["old", "same plan", "empty"])
def test_killed_before_each_file_operation(tmp_path: Path, start: str) -> None:
    old, new = kills.by_hand(6 if start == "old" else 4), kills.by_hand(4)
    if start == "same plan":  # fine-tuned since: other weights
        with torch.no_grad():
            next(old.parameters()).add_(1)
    states, step, reached = (dict(old.state_dict()), dict(new.state_dict())), 1, set()
    while True:
        place = tmp_path / str(step) / "artifact"
        place.parent.mkdir()
        if start != "empty":
            rf.save(old, place)
        if not _killed_at(step, place, lambda place=place: rf.save(new, place)):
            break
        if start != "empty" or (place / "plan.json").exists():
            left = dict(rf.load(place, kills.net()).state_dict())
            reached.add(next(i for i, state in enumerate(states) if kills.equal(left, state)))
        rf.save(new, place)
        assert kills.equal(dict(rf.load(place, kills.net()).state_dict()), states[1])
        assert kills.names(place.parent) == ["artifact", "artifact/model.safetensors", "artifact/plan.json"]
        step += 1
    assert step > 8
    assert reached == ({0} if start == "empty" else {0, 1}), "both sides of the switch were seen"


@forks
@pytest.mark.slow
def test_killed_at_random_instants() -> None:
    """In a process that has started no threads, such as those of HiGHS or CUDA, which forks do not survive."""
    command = [sys.executable, kills.__file__, "--count", "2", "--seed", "1", "--seconds", "0"]
    done = subprocess.run([*command, "--operations", "save", "compress", "finetune"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 kills left") == 3


@forks
def test_a_reader_beside_two_writers(tmp_path: Path) -> None:
    counts = kills.read_beside_writers(tmp_path, 0.7)
    assert counts
    assert all(found.startswith("model ") for found in counts), counts


def test_what_an_earlier_version_left_is_no_obstacle(tmp_path: Path) -> None:
    """It wrote the weights first, and its temporary files had other names."""
    rf.save(kills.by_hand(4), tmp_path)
    (tmp_path / "plan.json").unlink()
    for name in (".plan.json.abc.tmp", ".model.safetensors.abc.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "finetune.pt").touch()
    check_output(tmp_path)
    rf.save(kills.by_hand(6), tmp_path)
    assert kills.names(tmp_path) == ["finetune.pt", "model.safetensors", "plan.json"]


@pytest.mark.parametrize("name", ["diary.txt", "model.safetensors", "source.json", "report.html"])
def test_files_of_others_are_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(RankfoldError, match=f"holds other files \\('{name}'\\)"):
        rf.save(kills.by_hand(4), tmp_path)
    assert kills.names(tmp_path) == [name]


def test_what_describes_another_artifact_is_removed_or_ignored(tmp_path: Path) -> None:
    place = tmp_path / "a"
    rf.compress(kills.net(), kills.X, budget="params<=60%", strategy="uniform", output=place)
    report = Report.load(place)
    assert report.artifact == artifact_identity(place)
    assert report.disk_bytes == artifact_bytes(place) == sum(
        (place / name).stat().st_size for name in ("plan.json", "model.safetensors")
    )  # fmt: skip
    text = (place / "report.json").read_text()
    rf.save(rf.load(place, kills.net()), place)
    assert kills.names(place) == ["model.safetensors", "plan.json", "report.html", "report.json"], "the same artifact"
    rf.save(kills.by_hand(6), place)
    assert kills.names(place) == ["model.safetensors", "plan.json"]
    (place / "report.json").write_text(text)  # as if the process had been killed before it was removed
    with pytest.raises(CorruptArtifact, match="no longer exists"):
        Report.load(place)


def test_report_and_source_are_part_of_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = folder._complete

    def killed(place: Path, identity: str) -> None:
        if place.name in ("python", "shell"):  # and not where compress loads its result for the proof
            raise KeyboardInterrupt
        complete(place, identity)

    def python(out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            rf.compress(kills.net(), kills.X, budget="params<=60%", strategy="uniform", output=out)

    def shell(out: Path) -> None:
        arguments = ["compress", "lenet5_mnist5k", "-b", "params<=60%", "-s", "uniform", "-o", str(out)]
        assert CliRunner().invoke(app, arguments).exit_code == 130

    for call in (python, shell):
        place = tmp_path / call.__name__
        with monkeypatch.context() as patch:
            patch.setattr(folder, "_complete", killed)
            call(place)
        assert kills.names(place / ".rankfold-next"), "it was killed in the middle"
        assert Report.load(place).artifact == artifact_identity(place)
    source = Source.load(tmp_path / "shell")
    assert source is not None
    assert source.model == "lenet5_mnist5k"
    rf.save(rf.load(tmp_path / "python", kills.net()), tmp_path / "python")
    assert kills.names(tmp_path / "python") == ["model.safetensors", "plan.json", "report.html", "report.json"]


@pytest.mark.parametrize("kind", ["fifo", "file", "link to a folder", "link to a file", "dangling link"])
def test_what_is_no_folder_of_a_save_is_removed(tmp_path: Path, kind: str) -> None:
    place, stage, other = tmp_path / "a", tmp_path / "a" / ".rankfold-next", tmp_path / "other"
    rf.save(kills.by_hand(6), place)
    other.mkdir()
    (other / "file").touch()
    if kind == "fifo":
        os.mkfifo(stage)
    elif kind == "file":
        stage.touch()
    else:
        stage.symlink_to({"link to a folder": other, "link to a file": other / "file"}.get(kind, tmp_path / "none"))
    rf.load(place, kills.net())
    rf.save(kills.by_hand(4), place)
    assert kills.names(tmp_path) == ["a", "a/model.safetensors", "a/plan.json", "other", "other/file"]


@pytest.mark.parametrize("name", ["model.safetensors", "source.json", "report.html"])
def test_folders_in_the_place_of_files_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    rf.save(kills.by_hand(6), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(RankfoldError, match=f"'{name}' in it is a folder"):
        check_output(tmp_path)


def test_links_to_artifacts(tmp_path: Path) -> None:
    rf.save(kills.by_hand(6), tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    rf.save(kills.by_hand(4), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert kills.equal(dict(rf.load(tmp_path / "real", kills.net()).state_dict()), dict(kills.by_hand(4).state_dict()))
    (tmp_path / "real" / "plan.json").rename(tmp_path / "plan.json")
    (tmp_path / "real" / "plan.json").symlink_to(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    rf.save(kills.by_hand(6), tmp_path / "real")
    assert kills.equal(dict(rf.load(tmp_path / "link", kills.net()).state_dict()), dict(kills.by_hand(6).state_dict()))
    assert (tmp_path / "plan.json").read_text() == text, "what a link in the folder names stays"


def test_artifacts_can_be_copied_and_renamed(tmp_path: Path) -> None:
    rf.compress(kills.net(), kills.X, budget="params<=60%", strategy="uniform", output=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    loaded = [rf.load(tmp_path / name, kills.net()) for name in "ac"]
    assert torch.equal(loaded[0](kills.X), loaded[1](kills.X))
    assert Report.load(tmp_path / "c") == Report.load(tmp_path / "a")


@pytest.mark.parametrize("moment", ["weights", "plan"])
def test_a_save_that_fails_keeps_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    rf.save(kills.by_hand(6), tmp_path / "a")
    before = artifact_identity(tmp_path / "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if moment == "weights":
        monkeypatch.setattr("rankfold.storage.folder.write_weights", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    for place in ("a", "new"):
        with pytest.raises(RankfoldError, match="cannot write.*No space left"):
            rf.save(kills.by_hand(4), tmp_path / place)
    assert artifact_identity(tmp_path / "a") == before
    assert kills.names(tmp_path) == ["a", "a/model.safetensors", "a/plan.json"]


def test_a_writer_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankfold._files.LOCK_S", 0.05)
    refused = pytest.raises(RankfoldError, match="another process has been writing")
    with locked(tmp_path), refused, locked(tmp_path, timeout=0.05):
        pytest.fail("two locks on one folder")
    with locked(tmp_path, timeout=0.05) as alone:
        assert alone


@forks
def test_temporary_files_of_the_living_stay(tmp_path: Path) -> None:
    """The control of sweeping: a file is removed once its process is dead, not before."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        from rankfold._files import write_atomic

        def slowly(temporary: Path) -> None:
            temporary.write_text("half")
            os.write(go, b"x")
            signal.pause()

        try:
            write_atomic(tmp_path / "file", slowly)
        finally:
            os._exit(0)
    os.read(ready, 1)
    sweep(tmp_path, "file")
    assert len(kills.names(tmp_path)) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    write_text(tmp_path / "file", "whole")
    assert kills.names(tmp_path) == ["file"]


def test_special_files_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(RankfoldError, match="cannot write.*it is a (FIFO|folder)"):
            write_text(tmp_path / name, "x")
    assert json.dumps(kills.names(tmp_path)) == '["fifo", "folder"]'
