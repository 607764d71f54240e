"""What every command shares: where text goes, how errors end it, and how warnings look."""

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
"""How options are called on the command line, where the library's messages name its own."""

show_traceback: ContextVar[bool] = ContextVar("show_traceback", default=False)
"""Set by ``rankfold --traceback``."""


class Output:
    """Where a command's words go.

    Parameters
    ----------
    stream : file
        The real standard output.
    as_json : bool
        Print one JSON document there and nothing else.
    quiet : bool
        Print nothing but results asked for by name, warnings and errors.
    """

    def __init__(self, stream: TextIO, *, as_json: bool, quiet: bool) -> None:
        self.stream, self.as_json, self.quiet = stream, as_json, quiet

    @property
    def talks(self) -> bool:
        """Whether text for people is wanted."""
        return not (self.as_json or self.quiet)

    def say(self, text: str = "") -> None:
        """Print a line for people."""
        if self.talks:
            print(printable(text), file=self.stream)

    def result(self, text: str) -> None:
        """Print a line that is the command's answer: also with ``--quiet``."""
        if not self.as_json:
            print(printable(text), file=self.stream)

    def show(self, draw: Callable[[Console], object]) -> None:
        """Let rich draw something for people."""
        if self.talks:
            from rankfold.reporting.terminal import default_console

            draw(default_console())

    def document(self, data: Mapping[str, Any]) -> None:
        """Print the JSON document, if one is wanted."""
        if self.as_json:
            print(json_text(data, indent=2), file=self.stream)


@contextlib.contextmanager
def session(*, as_json: bool, quiet: bool) -> Iterator[Output]:
    """Give a command its output; what else prints to standard output goes to standard error with ``--json``."""
    out = Output(sys.stdout, as_json=as_json, quiet=quiet)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if quiet:
            stack.enter_context(silenced())
        yield out


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """Make errors end a command with a message and an exit code, without a traceback."""

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
                    "This is a bug in rankfold or in code of yours that it ran. Please report it with what "
                    "`rankfold --traceback COMMAND ...` shows."
                )
                raise typer.Exit(UNEXPECTED) from None

    return run


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line, without the place in the code that a user of the command does not know."""
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
