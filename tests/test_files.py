"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rankfold._files import check_writable, write_atomic, write_text
from rankfold.errors import RankfoldError


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_writes_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "text.txt"
    assert write_text(file, "ä") == file
    assert file.read_text(encoding="utf-8") == "ä"
    write_text(file, "new")
    assert file.read_text() == "new"
    assert _names(tmp_path) == ["a", "a/b", "a/b/text.txt"]


def test_file_is_as_public_as_any_other(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("x")
    assert stat.S_IMODE(write_text(tmp_path / "mine", "x").stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")])
def test_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def write(path: Path) -> None:
        path.write_text("half")
        raise failure

    wanted = RankfoldError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(wanted, match="No space|bug|^$"):
        write_atomic(tmp_path / "a" / "b" / "file", write)
    assert _names(tmp_path) == []


def test_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_text(tmp_path / "file", "old")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RankfoldError, match="cannot write.*file.*Read-only file system"):
        write_text(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_failure_keeps_folders_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    def write(path: Path) -> None:
        (path.parent / "of somebody else").write_text("x")
        raise OSError(5, "Input/output error")

    with pytest.raises(RankfoldError):
        write_atomic(tmp_path / "mine" / "new" / "file", write)
    assert _names(tmp_path) == ["mine", "mine/new", "mine/new/of somebody else"]


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "deep")
    assert _names(tmp_path) == []
    write_text(tmp_path / "file", "x")
    with pytest.raises(RankfoldError, match="cannot write.*below.*Choose another location"):
        check_writable(tmp_path / "file" / "below")
    assert _names(tmp_path) == ["file"]


def test_check_writable_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable("new")
    assert _names(tmp_path) == []
