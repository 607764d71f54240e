"""Progress with an estimate of the remaining time: bars in terminals and notebooks, lines elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import length_hint
from typing import TYPE_CHECKING, TypeVar

from rankfold._printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

DELAY_S = 1.0  # delay before a bar appears
LINE_S = 60.0  # interval of lines, if there are no bars

_clock = time.monotonic
_logger = logging.getLogger("rankfold")

_display: Progress | None = None  # shared by nested loops, because a terminal has only one
_silent: ContextVar[bool] = ContextVar("_silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Show no progress while the block runs."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def track(
    iterable: Iterable[T], description: str, total: int | None = None, *, weights: Sequence[float] = ()
) -> Iterator[T]:
    """Yield the items and show the progress of the loop.

    In a terminal (on standard error) and in a notebook, a bar appears with the first item after `DELAY_S` seconds and
    is erased when the loop ends. Nested loops share one display. Elsewhere, one line per minute reports the progress of
    all loops: to the logger ``rankfold`` if its level INFO is enabled, otherwise to standard error. A level set on that
    logger itself is respected.

    Parameters
    ----------
    iterable : iterable
        The items.
    description : str
        The label of the loop.
    total : int or None
        The number of items; by default the iterable's length, if it has one.
    weights : sequence of float, optional
        The expected time of each item, in any unit; by default all items are expected to take the same time.
    """
    if _silent.get():
        yield from iterable
        return
    if total is None:
        total = length_hint(iterable) or None
    if not _has_bars():
        yield from _lines.follow(iterable, _Loop(description=description, total=total, weights=weights))
        return
    loop = _Loop(description=description, total=total, weights=weights)
    task = None
    try:
        for loop.done, item in enumerate(iterable):
            if task is None and _clock() - loop.start >= DELAY_S:
                task = _show(loop)
            if task is not None and _display is not None:
                _display.update(task, completed=loop.share, count=loop.count)
            yield item
    finally:
        if task is not None:
            _hide(task)


def _has_bars() -> bool:
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    if "ipykernel" not in sys.modules and "google.colab" not in sys.modules:
        return False
    from rich import get_console

    return get_console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


@dataclass(eq=False, slots=True, kw_only=True)
class _Loop:
    """A running loop and its progress."""

    description: str
    total: int | None
    weights: Sequence[float] = ()
    start: float = field(default_factory=lambda: _clock())
    done: int = 0

    @property
    def share(self) -> float:
        """The share of the expected time of all items that the finished ones have; 0 if unknown."""
        if sum(self.weights) > 0:
            return sum(self.weights[: self.done]) / sum(self.weights)
        return self.done / self.total if self.total else 0.0

    @property
    def count(self) -> str:
        """The number of finished items, of all of them if known."""
        return f"{self.done:,}" + (f" of {self.total:,}" if self.total else "")

    def text(self, now: float) -> str:
        """Return the progress of the loop and the estimated remaining time."""
        seconds = now - self.start
        text = f"{self.description}: {self.count}, {duration(seconds)}"
        if 0 < self.share <= 1:
            text += f", about {duration(seconds * (1 / self.share - 1))} left"
        return text


@dataclass(eq=False, slots=True)
class _Lines:
    """The lines of all loops together: at most one in `LINE_S` seconds."""

    loops: dict[int, list[_Loop]] = field(default_factory=dict)  # by thread, the outermost loop first
    due: float = 0.0
    seen: float = float("-inf")

    def follow(self, iterable: Iterable[T], loop: _Loop) -> Iterator[T]:
        """Yield the items and write a line whenever one is due."""
        thread = threading.get_ident()
        if not self.loops and loop.start - self.seen >= LINE_S / 2:  # otherwise it continues recent work
            self.due = loop.start + LINE_S
        self.loops.setdefault(thread, []).append(loop)
        try:
            for loop.done, item in enumerate(iterable):
                self._tick(thread)
                yield item
        finally:
            self.seen = _clock()
            mine = self.loops.get(thread, [])
            if loop in mine:
                mine.remove(loop)
            if not mine:
                self.loops.pop(thread, None)

    def _tick(self, thread: int) -> None:
        now = self.seen = _clock()
        if now < self.due:
            return
        self.due = now + LINE_S
        say("; ".join(loop.text(now) for loop in self.loops.get(thread, [])))


_lines = _Lines()


def say(text: str) -> None:
    """Write one line: to the logger ``rankfold`` if its level INFO is enabled, otherwise to standard error."""
    if _silent.get():
        return
    if os.environ.get("RANK", "0") != "0":  # only the first process of a launch reports
        return
    if _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers():
        _logger.info(text)
    elif _logger.level == logging.NOTSET and not _logger.disabled and sys.stderr is not None:
        print(f"rankfold: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration in words, such as ``1 min 09 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _show(loop: _Loop) -> TaskID:
    """Add a bar to the display, creating it if necessary, and return the bar's id."""
    from rich.markup import escape

    global _display
    display = _display
    if display is None:
        _display = display = _new_display()
        display.start()
    total = None if loop.total is None else 1.0
    return display.add_task(escape(printable(loop.description)), total=total, count=loop.count)


def _hide(task: TaskID) -> None:
    """Remove a bar from the display, which disappears with the last one."""
    global _display
    if _display is None:
        return
    _display.remove_task(task)
    if not _display.task_ids:
        _display.stop()
        _display = None


def _new_display() -> Progress:
    from rich import progress  # imported here, so that rich is loaded only if a bar is shown
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[count]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=86_400.0,  # items may take longer than the default, 30 seconds
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
