"""What a C library prints, kept off standard output."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def without_c_prints() -> Iterator[None]:
    """Drop what C code prints to the process's standard output inside; what Python prints there arrives as usual.

    HiGHS prints lines of its own now and then, whatever its options say (``printf`` of
    ``HighsMipSolverData::transformNewIntegerFeasibleSolution``), which would spoil ``rankfold ... --json``.
    ``contextlib.redirect_stdout`` does not reach what C code prints, so the file descriptor is exchanged: for the whole
    process, one thread at a time. Where a process has no such descriptor nothing is done.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):
            _flush()
            ours = os.dup(1)
            stack.callback(os.close, ours)
            _keep_python(stack, ours)
            nothing = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nothing)
            os.dup2(nothing, 1)
            stack.callback(os.dup2, ours, 1)
            stack.callback(_flush_c)
        yield


def _keep_python(stack: contextlib.ExitStack, ours: int) -> None:
    """Let ``sys.stdout``, if it is the standard output, write to another descriptor until the stack is unwound."""
    stream = sys.stdout
    try:
        if stream.fileno() != 1:  # redirected within Python: it never gets to the descriptor
            return
    except (AttributeError, OSError, ValueError):  # None, closed, or without a descriptor
        return
    aside = _Aside(stream, ours)

    def back() -> None:
        aside.end()
        if sys.stdout is aside:
            sys.stdout = stream

    sys.stdout = aside
    stack.callback(back)


class _Aside(io.TextIOBase):
    """A stream that writes to another descriptor for a while, and then to the original stream again."""

    def __init__(self, stream: Any, descriptor: int) -> None:
        self._stream = stream
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Write a text; a thread that took hold of this stream may still do so when it has ended."""
        with self._lock:
            if self._descriptor is None:
                return self._stream.write(text)
            left = text.encode(self._stream.encoding or "utf-8", self._stream.errors or "strict")
            while left:
                left = left[os.write(self._descriptor, left) :]
            return len(text)

    def end(self) -> None:
        """Write to the original stream from now on."""
        with self._lock:
            self._descriptor = None

    def isatty(self) -> bool:
        """Whether the original stream is a terminal."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - as of io.TextIOWrapper
        """The encoding of the original stream."""
        return self._stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush() -> None:
    """Write out what Python and C hold back for standard output."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream that is None, or closed
        sys.stdout.flush()
    _flush_c()


def _flush_c() -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # on Windows there is no such handle
        ctypes.CDLL(None).fflush(None)
