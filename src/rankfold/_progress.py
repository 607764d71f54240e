"""Progress with an estimate of the time left, on the terminal only and only where it matters."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import TYPE_CHECKING, TypeVar

from rankfold._printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

DELAY_S = 2.0

# The display while there is one: nested loops share it, because a terminal has only one.
_display: Progress | None = None

_silent: ContextVar[bool] = ContextVar("_silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Show no progress while the block runs, terminal or not."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far the loop is.

    The bar is written to the standard error stream if that is a terminal, appears with the first
    item after `DELAY_S` seconds, and is erased when the loop ends, however it ends. Nested loops
    share one display. Otherwise this is the plain loop.

    Parameters
    ----------
    iterable : iterable
        What to loop over.
    description : str
        What the loop does, in the user's words.
    total : int or None
        How many items there are; by default the iterable's length where it has one.
    """
    if _silent.get() or sys.stderr is None or not sys.stderr.isatty():
        yield from iterable
        return
    if total is None:
        total = length_hint(iterable) or None
    start = time.monotonic()
    task = None
    try:
        for done, item in enumerate(iterable):
            if task is None and time.monotonic() - start >= DELAY_S:
                task = _show(description, total)
            if task is not None and _display is not None:
                _display.update(task, completed=done)
            yield item
    finally:
        if task is not None:
            _hide(task)


def _show(description: str, total: int | None) -> TaskID:
    """Add a line to the display, which appears if need be, and return its id."""
    from rich.markup import escape

    global _display
    display = _display
    if display is None:
        _display = display = _new_display()
        display.start()
    return display.add_task(escape(printable(description)), total=total)


def _hide(task: TaskID) -> None:
    """Remove a line from the display, which disappears with the last one."""
    global _display
    if _display is None:
        return
    _display.remove_task(task)
    if not _display.task_ids:
        _display.stop()
        _display = None


def _new_display() -> Progress:
    # Imported here, so that only those who see the bar pay for rich.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
