"""The progress bar: on a terminal, after a while, and gone afterwards."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rankfold import _progress
from rankfold._progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch, delay_s: float = 0.0) -> Terminal:
    """Make the standard error stream a terminal; in the test itself, because pytest captures it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_progress, "DELAY_S", delay_s)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def test_a_slow_loop_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    assert list(track(range(3), "working")) == [0, 1, 2]
    text = terminal.getvalue()
    assert "working" in text
    assert "of 3" in text
    # Erased, and the cursor is back; rich before 14.3 leaves an empty line.
    assert text.rstrip("\r").replace("\n", "").endswith("\r\x1b[2K\x1b[?25h")
    assert _progress._display is None


def test_the_bar_shows_the_share_of_the_expected_time(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    for done, _ in enumerate(track("abc", "working", weights=[6.0, 1.0, 1.0])):
        assert _progress._display is not None
        (task,) = _progress._display.tasks
        assert task.fields["count"] == f"{done} of 3"
        assert task.percentage == pytest.approx((0.0, 75.0, 87.5)[done])


def test_a_quick_loop_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, delay_s=2.0)
    assert list(track(range(3), "working")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_progress, "DELAY_S", 0.0)
    assert list(track(iter([1, 2]), "working", total=2)) == [1, 2]
    assert stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(track([1, 2], "working")) == [1, 2]


def test_nested_loops_share_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    for _ in track(range(2), "epochs"):
        outer = _progress._display
        assert outer is not None
        for _ in track(iter("ab"), "steps"):
            assert _progress._display is outer
        assert _progress._display is outer
    assert _progress._display is None
    assert "epochs" in terminal.getvalue()


def test_an_error_or_a_break_removes_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)

    def read() -> Iterator[int]:
        yield 1
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        list(track(read(), "working"))
    assert _progress._display is None
    loop = track(range(9), "working")
    next(loop)
    assert _progress._display is not None
    loop.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert _progress._display is None


def test_a_loader_of_unknown_length(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __len__(self) -> int:
            raise TypeError("has no length")

        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

    terminal = open_terminal(monkeypatch)
    items = list[int]()
    for item in track(Endless(), "working"):
        assert _progress._display is not None
        (task,) = _progress._display.tasks
        assert (task.fields["count"], task.total) == (str(len(items)), None)
        items.append(item)
    assert items == [1, 2]
    assert "working" in terminal.getvalue()


def test_the_import_does_not_bring_rich() -> None:
    code = "import sys, rankfold._progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
