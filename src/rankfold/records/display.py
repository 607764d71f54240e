"""Display of records by `print` and in notebooks, as on the command line."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import singledispatch
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
MOST_LINES = 60
"""Longer texts are cut in the middle."""
LAST_LINES = 20


@singledispatch
def show(record: Any, console: Console) -> None:
    """Print a record to a rich console; `rankfold.reporting` registers the implementations."""
    raise TypeError(f"no display of {type(record).__name__} is registered for {console}")


class Shown:
    """A record with a readable `str` and HTML representation; its `repr` is one line."""

    __slots__ = ()

    def __str__(self) -> str:
        return _cut(_rendered(lambda console: show(self, console)))

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(self))}</pre>'


def _rendered(write: Callable[[Console], None]) -> str:
    from rich.console import Console  # imported here to keep `import rankfold` fast

    stream = StringIO()
    write(Console(file=stream, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().split("\n"))


def _cut(text: str) -> str:
    lines = text.split("\n")
    left_out = len(lines) - MOST_LINES
    if left_out <= 1:
        return text
    note = f"... {left_out + 1:,} lines omitted; the command line and saved reports show all of them ..."
    return "\n".join([*lines[: MOST_LINES - LAST_LINES - 1], note, *lines[-LAST_LINES:]])
