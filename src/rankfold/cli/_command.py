"""Commands: functions of the values of their flags and of an output; flags are defined in `rankfold.cli._options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperCommand

from rankfold._config import spelling
from rankfold._options import Flag
from rankfold.cli._options import flags_of, parameter
from rankfold.cli._session import Output, session
from rankfold.cli._spelling import spelling_of


class Given(SimpleNamespace):
    """The values of flags by name; `named` are the flags that were given on the command line."""

    named: frozenset[str] = frozenset()


def without_types(params: list[Any]) -> list[Any]:
    """Return a command's parameters, of which those without a value show no type in the help."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))


Body = Callable[[Given, Output], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Parameters
    ----------
    body : callable
        The function that runs; its docstring is the help.
    example : str
        Shown below the help.
    names : tuple of str
        Its flags and groups of flags, in the order of the help.
    own : dict of str to Flag
        Flags that only this command has, or that differ from those of other commands.
    """

    body: Body
    example: str
    names: tuple[str, ...]
    own: dict[str, Flag]

    def add_to(self, app: typer.Typer, name: str) -> None:
        """Register the command."""
        flags = flags_of(self.names, self.own)

        def run(ctx: typer.Context, **values: object) -> None:
            given = Given(
                **values, named=frozenset(o for o in flags if "DEFAULT" not in str(ctx.get_parameter_source(o)))
            )
            with spelling(spelling_of(flags)), session(as_json=given.as_json, quiet=given.quiet) as out:
                for option, flag in flags.items():
                    if flag.check is not None:
                        flag.check(option, values[option])
                self.body(given, out)

        ctx = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = inspect.Signature([ctx, *(parameter(n, f) for n, f in flags.items())])
        paragraphs = inspect.cleandoc(self.body.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        app.command(name, cls=_Command, help=text, epilog=f"Example: {self.example}")(run)


def command(example: str, *names: str, **own: Flag) -> Callable[[Body], Command]:
    """Make a command of a function; `names` are flags and groups of flags (see `rankfold.cli._options`)."""
    return lambda body: Command(body=body, example=example, names=names, own=own)
