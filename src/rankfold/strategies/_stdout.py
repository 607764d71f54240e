"""Suppression of the standard output of C libraries."""

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
    """Discard what C code prints to standard output; the output of Python is not affected.

    HiGHS sometimes prints lines regardless of its options (``printf`` in
    ``HighsMipSolverData::transformNewIntegerFeasibleSolution``), which would corrupt ``rankfold ... --json``.
    ``contextlib.redirect_stdout`` does not affect C code, so the file descriptor is replaced, for the whole process and
    one thread at a time. Without such a descriptor, nothing is done.
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
    """Redirect ``sys.stdout``, if it is the standard output, to another descriptor until the stack is unwound."""
    stream = sys.stdout
    try:
        if stream.fileno() != 1:  # redirected within Python
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
    """A stream that writes to another descriptor until `end`, and then to the original stream."""

    def __init__(self, stream: Any, descriptor: int) -> None:
        self._stream = stream
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Write a text, also after `end`: other threads may still hold this stream."""
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
    """Flush the standard output of Python and C."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream that is None, or closed
        sys.stdout.flush()
    _flush_c()


def _flush_c() -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # on Windows there is no such handle
        ctypes.CDLL(None).fflush(None)
