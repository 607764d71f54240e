"""What a C library prints, kept off standard output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Send what is written to the process's standard output inside to standard error.

    HiGHS prints a line of its own now and then, whatever it is told, which would spoil ``rankfold ... --json``.
    ``contextlib.redirect_stdout`` does not reach what C code prints, so the file descriptors are exchanged: for the
    whole process, one thread at a time. Nothing is lost. Where a process has no such descriptors nothing is done.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):
            _flush()
            ours = os.dup(1)
            stack.callback(os.close, ours)
            os.dup2(2, 1)
            stack.callback(os.dup2, ours, 1)
            stack.callback(_flush)
        yield


def _flush() -> None:
    """Write out what Python and C hold back for standard output."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream that is None, or closed
        sys.stdout.flush()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # on Windows there is no such handle
        ctypes.CDLL(None).fflush(None)
