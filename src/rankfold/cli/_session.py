"""Output, errors and warnings of all commands."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from rankfold._documents import json_text
from rankfold._printable import printable, shortened
from rankfold._progress import silenced
from rankfold.errors import RankfoldError, RankfoldWarning

if TYPE_CHECKING:
    from rich.console import Console

BAD_INPUT = 2
UNEXPECTED = 1
INTERRUPTED = 130

show_traceback: ContextVar[bool] = ContextVar("show_traceback", default=False)
"""Set by ``rankfold --traceback``."""


class Output:
    """Output of a command to `stream`, the process's standard output.

    With `as_json` it is a single JSON document; with `quiet` only the command's results, no tables and no progress.
    """

    def __init__(self, stream: TextIO, *, as_json: bool, quiet: bool) -> None:
        self.stream, self.as_json, self.quiet = stream, as_json, quiet

    @property
    def talks(self) -> bool:
        """Whether human-readable text is printed."""
        return not (self.as_json or self.quiet)

    def say(self, text: str = "") -> None:
        """Print a line of human-readable text."""
        if self.talks:
            print(printable(text), file=self.stream)

    def result(self, text: str) -> None:
        """Print a line of the command's results, also with ``--quiet``."""
        if not self.as_json:
            print(printable(text), file=self.stream)

    def show(self, draw: Callable[[Console], object]) -> None:
        """Draw human-readable output on rich's console."""
        if self.talks:
            from rankfold.reporting.terminal import default_console

            draw(default_console())

    def document(self, data: Mapping[str, Any]) -> None:
        """Print the JSON document with ``--json``."""
        if self.as_json:
            print(json_text(data, indent=2), file=self.stream)


@contextlib.contextmanager
def session(*, as_json: bool, quiet: bool) -> Iterator[Output]:
    """Provide the output of a command, show warnings as single lines, and turn errors into messages and exit codes.

    With ``--json``, other prints to standard output go to standard error.
    """
    out = Output(sys.stdout, as_json=as_json, quiet=quiet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default", RankfoldWarning)
        warnings.showwarning = _show_warning
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if quiet:
            stack.enter_context(silenced())
        try:
            yield out
        except RankfoldError as error:
            _end(f"error: {error}", BAD_INPUT)
        except KeyboardInterrupt:
            _tell("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            _end(
                f"unexpected error: {type(error).__name__}: {shortened(str(error))}\n"
                "This is a bug in rankfold or in your code that it ran. To report it, include the output of "
                "`rankfold --traceback COMMAND ...`.",
                UNEXPECTED,
            )


def _end(message: str, code: int) -> NoReturn:
    if show_traceback.get():
        traceback.print_exc()
    _tell(message)
    raise typer.Exit(code) from None


def _show_warning(message: Warning | str, category: type[Warning], *_args: Any, **_kwargs: Any) -> None:
    kind = "" if issubclass(category, RankfoldWarning) else f" ({category.__name__})"
    _tell(f"warning{kind}: {shortened(' '.join(str(message).split()))}")


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
