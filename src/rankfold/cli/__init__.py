"""The command ``rankfold``."""

from __future__ import annotations

from collections.abc import Iterator
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
    explaining,
    exporting,
    inspecting,
    listing,
    planning,
    reporting,
    reproducing,
    sweeping,
    timing,
    training,
    tuning,
)
from rankfold.cli._command import without_types
from rankfold.cli._session import show_traceback


@contextmanager
def _safe_to_show() -> Iterator[None]:
    """Escape control characters in errors about arguments, which quote them."""
    try:
        yield
    except Exception as error:
        # Only usage errors, which are click's or typer's depending on the version, have a message.
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = printable(message)  # pyright: ignore[reportAttributeAccessIssue]
        raise


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _safe_to_show():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _safe_to_show():
            return super().invoke(ctx)


COMMANDS = {
    "demo": demo.demo,
    "inspect": inspecting.inspect,
    "analyze": analyzing.analyze,
    "train": training.train,
    "compress": compressing.compress,
    "sweep": sweeping.sweep,
    "plan": planning.plan,
    "apply": planning.apply,
    "finetune": tuning.finetune,
    "evaluate": evaluating.evaluate,
    "gradcam": explaining.gradcam,
    "bench": benching.bench,
    "latency": timing.latency,
    "export": exporting.export,
    "report": reporting.report,
    "reproduce": reproducing.reproduce,
    "methods": listing.list_methods,
    "strategies": listing.list_strategies,
}
"""In the order of the help."""


def build() -> typer.Typer:
    """Return the application with all commands."""
    application = typer.Typer(
        cls=_Group,
        name="rankfold",
        help="Compress trained PyTorch networks by low-rank factorization, with a method and ranks for each layer.",
        epilog="Start with: rankfold demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_options)
    for name, one in COMMANDS.items():
        one.add_to(application, name)
    return application


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rankfold {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[  # noqa: ARG001 - read by its callback
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    show_traceback.set(traceback)


app = build()


def main() -> None:
    """Run the command line."""
    app()
