"""Long work says how far it is, wherever it runs; nothing says what nobody asked for."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import _progress
from rankfold._progress import silenced, track


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def items(self, number: int, seconds: float) -> Iterator[int]:
        for i in range(number):
            yield i
            self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_progress, "_clock", made)
    monkeypatch.setattr(_progress, "_lines", _progress._Lines())
    return made


Said = Callable[[], list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Return the lines on standard error, which is no terminal."""
    return lambda: capsys.readouterr().err.splitlines()


def test_a_line_a_minute(clock: Clock, said: Said) -> None:
    assert list(track(clock.items(20, 30.0), "measuring layers", total=20)) == list(range(20))
    lines = said()
    assert len(lines) == 9  # ten minutes, the last of which ends with the loop
    assert lines[0] == "rankfold: measuring layers: 2 of 20, 1 min 00 s, about 9 min 00 s left"
    assert lines[-1] == "rankfold: measuring layers: 18 of 20, 9 min 00 s, about 1 min 00 s left"


def test_expected_times_of_the_items_count(clock: Clock, said: Said) -> None:
    """The first layers take longest: with three of four minutes spent on the first item, not three items are left."""

    def shrinking() -> Iterator[int]:
        for i, seconds in enumerate((180.0, 30.0, 30.0)):
            yield i
            clock.now += seconds

    list(track(shrinking(), "measuring layers", total=3, weights=[6.0, 1.0, 1.0]))
    assert said() == ["rankfold: measuring layers: 1 of 3, 3 min 00 s, about 1 min 00 s left"]
    clock.now += 3600
    list(track(shrinking(), "measuring layers", total=3))
    assert said()[0].endswith("about 6 min 00 s left")


def test_less_than_a_minute_is_silent(clock: Clock, said: Said) -> None:
    list(track(clock.items(59, 1.0), "measuring layers"))
    assert said() == []


def test_steps_of_less_than_a_minute_add_up(clock: Clock, said: Said) -> None:
    for step in ("collecting", "pricing", "factoring"):
        list(track(clock.items(5, 10.0), step, total=5))
    assert [line.split(":")[1] for line in said()] == [" pricing", " factoring"]


def test_work_after_a_pause_begins_a_minute_of_its_own(clock: Clock, said: Said) -> None:
    list(track(clock.items(5, 10.0), "first"))
    clock.now += 3600
    list(track(clock.items(5, 10.0), "second"))
    assert said() == []


def test_nested_loops_share_the_line(clock: Clock, said: Said) -> None:
    for _ in track(range(3), "fitting layers"):
        for _ in track(clock.items(4, 10.0), "layer a", total=4):
            pass
    assert said() == [
        "rankfold: fitting layers: 1 of 3, 1 min 00 s, about 2 min 00 s left; layer a: 2 of 4, 20 s, about 20 s left"
    ]


def test_a_loop_of_unknown_length_and_hours(clock: Clock, said: Said) -> None:
    loop = track(clock.items(3, 5000.0), "waiting")
    assert [next(loop), next(loop)] == [0, 1]
    assert said() == ["rankfold: waiting: 1, 1 h 23 min"]


def test_a_loop_that_is_left_is_forgotten(clock: Clock, said: Said) -> None:
    for _ in track(clock.items(9, 10.0), "left"):
        break
    loop = track(clock.items(9, 50.0), "closed")
    next(loop)
    loop.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert _progress._lines.loops == {}
    list(track(clock.items(3, 50.0), "later", total=3))
    assert said() == ["rankfold: later: 2 of 3, 1 min 40 s, about 50 s left"]


def test_the_logger_gets_the_lines_where_it_takes_them(
    clock: Clock, said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="rankfold"):
        list(track(clock.items(4, 30.0), "measuring layers", total=4))
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("rankfold", "INFO", "measuring layers: 2 of 4, 1 min 00 s, about 1 min 00 s left")
    ]
    assert said() == []


@pytest.mark.parametrize("how", ["level", "disabled", "silenced", "rank", "no stream"])
def test_silence_when_asked_for(how: str, clock: Clock, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("rankfold")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    if how == "level":
        logger.setLevel(logging.WARNING)
    elif how == "disabled":
        monkeypatch.setattr(logger, "disabled", True)
    elif how == "rank":
        monkeypatch.setenv("RANK", "1")
    elif how == "no stream":
        monkeypatch.setattr(sys, "stderr", None)
    if how == "silenced":
        with silenced():
            list(track(clock.items(9, 60.0), "measuring layers"))
    else:
        list(track(clock.items(9, 60.0), "measuring layers"))
    assert said() == []


def test_notebooks_have_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not _progress._has_bars()
    import rich

    class Notebook:
        is_jupyter = True

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(rich, "get_console", Notebook)
    monkeypatch.setattr(_progress.importlib.util, "find_spec", lambda name: object())
    assert _progress._has_bars()
    monkeypatch.setattr(_progress.importlib.util, "find_spec", lambda name: None)
    assert not _progress._has_bars()  # without ipywidgets rich cannot update what it shows


class Slow:
    """Batches that take twenty seconds each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(4):
            self.clock.now += 20.0
            yield torch.randn(8, 16)

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"reconstruct": "data"}, {"collecting second moments"}),
        ({"reconstruct": "sequential"}, {"fitting layers", "layer 0"}),
        ({"strategy": rf.CompressNAS(proxy="weight")}, {"collecting second moments"}),
    ],
)
def test_compressing_says_how_far_it_is(options: dict[str, object], steps: set[str], clock: Clock, said: Said) -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)).eval()
    rf.compress(net, torch.randn(2, 16), budget="params<=60%", calibration=_slow(clock), **options)
    lines = said()
    assert all(line.startswith("rankfold: ") for line in lines)
    found = {step.split(":")[0] for line in lines for step in line.removeprefix("rankfold: ").split("; ")}
    assert steps <= found


def _slow(clock: Clock) -> Iterable[torch.Tensor]:
    return Slow(clock)


def test_a_search_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(24, 24), nn.ReLU())])
    data = [torch.randn(32, 24)]
    for share in (30, 70):
        rf.compress(net, data[0], budget=f"params<={share}%, macs<=90%", calibration=data)
    assert capfd.readouterr() == ("", "")
