"""Output, errors and warnings of all commands."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO

import typer

from rankfold._documents import json_text
from rankfold._printable import printable, shortened
from rankfold._progress import silenced
from rankfold.errors import RankfoldError, RankfoldWarning

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

BAD_INPUT = 2
UNEXPECTED = 1
INTERRUPTED = 130

_SPELLING = {
    "FineTune(resume=False)": "--restart",
    "FineTune(checkpoint=...)": "--checkpoint",
    "FineTune(max_steps=...)": "--max-steps",
    "FineTune(data=...)": "--data",
    "Pass evaluate=..., such as evaluate=rf.top1(loader).": "Give --data.",
    "Pass calibration=..., or reconstruct='weights'.": "Give --data, or --reconstruct weights.",
}
"""Names of options in the library's messages, and on the command line."""

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
        """Whether text for people is printed."""
        return not (self.as_json or self.quiet)

    def say(self, text: str = "") -> None:
        """Print a line for people."""
        if self.talks:
            print(printable(text), file=self.stream)

    def result(self, text: str) -> None:
        """Print a line of the command's results, also with ``--quiet``."""
        if not self.as_json:
            print(printable(text), file=self.stream)

    def show(self, draw: Callable[[Console], object]) -> None:
        """Draw something for people on rich's console."""
        if self.talks:
            from rankfold.reporting.terminal import default_console

            draw(default_console())

    def document(self, data: Mapping[str, Any]) -> None:
        """Print the JSON document with ``--json``."""
        if self.as_json:
            print(json_text(data, indent=2), file=self.stream)


@contextlib.contextmanager
def session(*, as_json: bool, quiet: bool) -> Iterator[Output]:
    """Provide the output of a command. With ``--json``, other prints to standard output go to standard error."""
    out = Output(sys.stdout, as_json=as_json, quiet=quiet)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if quiet:
            stack.enter_context(silenced())
        yield out


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into a message and an exit code, without a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with _plain_warnings():
            try:
                function(*args, **kwargs)
            except RankfoldError as error:
                if show_traceback.get():
                    traceback.print_exc()
                _tell(f"error: {_spelled(str(error))}")
                raise typer.Exit(BAD_INPUT) from None
            except KeyboardInterrupt:
                _tell("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except Exception as error:
                if show_traceback.get():
                    traceback.print_exc()
                _tell(
                    f"unexpected error: {type(error).__name__}: {shortened(str(error))}\n"
                    "This is a bug in rankfold or in your code that it ran. To report it, include the output of "
                    "`rankfold --traceback COMMAND ...`."
                )
                raise typer.Exit(UNEXPECTED) from None

    return run


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line, without the file and line of code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", RankfoldWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, category: type[Warning], *_args: Any, **_kwargs: Any) -> None:
    who = "" if issubclass(category, RankfoldWarning) else f" ({category.__name__})"
    _tell(f"warning{who}: {shortened(' '.join(str(message).split()))}")


def _spelled(message: str) -> str:
    for ours, theirs in _SPELLING.items():
        message = message.replace(ours, theirs)
    return message


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
