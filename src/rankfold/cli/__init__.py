"""The command ``rankfold``: one command a file; what they import is imported when they run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rankfold._printable import printable
from rankfold._version import __version__
from rankfold.cli import (
    analyzing,
    benching,
    compressing,
    demo,
    evaluating,
    inspecting,
    planning,
    reporting,
    sweeping,
    tuning,
)
from rankfold.cli._session import show_traceback


@contextmanager
def _safe_to_show() -> Iterator[None]:
    """Write out control characters in what is said of a wrong argument, which it quotes."""
    try:
        yield
    except Exception as error:
        # Usage errors are click's or typer's own, depending on the version; only these have a message.
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = printable(message)  # pyright: ignore[reportAttributeAccessIssue]
        raise


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _safe_to_show():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _safe_to_show():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    name="rankfold",
    help="Make a trained PyTorch network smaller with low-rank factors, chosen layer by layer.",
    epilog="Start with: rankfold demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(name: str, function: Callable[..., None], example: str) -> None:
    """Register a command; its help is its docstring, with each paragraph in one flow."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    app.command(name, help="\n\n".join(" ".join(p.split()) for p in paragraphs), epilog=example)(function)


_add("demo", demo.demo, demo.EXAMPLE)
_add("inspect", inspecting.inspect, inspecting.EXAMPLE)
_add("analyze", analyzing.analyze, analyzing.EXAMPLE)
_add("compress", compressing.compress, compressing.EXAMPLE)
_add("sweep", sweeping.sweep, sweeping.EXAMPLE)
_add("plan", planning.plan, planning.PLAN_EXAMPLE)
_add("apply", planning.apply, planning.APPLY_EXAMPLE)
_add("finetune", tuning.finetune, tuning.EXAMPLE)
_add("evaluate", evaluating.evaluate, evaluating.EXAMPLE)
_add("bench", benching.bench, benching.EXAMPLE)
_add("report", reporting.report, reporting.EXAMPLE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rankfold {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001 - read by its callback
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """Take what stands before the command's name."""
    show_traceback.set(traceback)


def main() -> None:
    """Run the command line."""
    app()
