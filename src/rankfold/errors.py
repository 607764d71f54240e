"""Every error and warning that rankfold raises on purpose.

Each message says what was wrong (with the layer or option and its value) and what to do. On the command line the
message is printed without a traceback and the exit code is 2. Messages quote what comes from outside (names in files
and models): control characters in it are written out, and a message is cut to 2,000 characters, all in one place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from rankfold._printable import printable, quoted, shortened

_LONGEST_NAME = 200  # comparing names is quadratic in their length


class RankfoldError(Exception):
    """Base of every error that rankfold raises on purpose.

    Parameters
    ----------
    message : str
        What was wrong and what to do. It is shown without control characters, in at most 2,000 characters.
    """

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(_message(message), *more)


class UnknownNameError(RankfoldError, ValueError):
    """A name (method, strategy, option, data set, ...) that nothing is registered under.

    Parameters
    ----------
    kind : str
        What was looked up, in the user's words, such as ``"method"``.
    name : str
        The name that was not found.
    choices : iterable of str
        Every valid name; the message suggests the nearest one.
    of : str
        What the name belongs to, such as ``"strategy 'energy'"`` for an option.
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, of: str = "") -> None:
        names = list(choices)
        near = difflib.get_close_matches(str(name)[:_LONGEST_NAME], names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        owner = f" of {of}" if of else ""
        super().__init__(f"unknown {kind} {quoted(name)}{owner}.{hint} Choose from: {', '.join(names)}.")


class ConfigError(RankfoldError, ValueError):
    """An option has a value that it cannot have."""


class BudgetError(RankfoldError, ValueError):
    """A budget that cannot be understood, or that asks for nothing."""


class InfeasibleBudget(BudgetError):
    """A budget that no plan can meet.

    Parameters
    ----------
    message : str
        What was asked.
    rows : sequence of (resource, asked, least, dense)
        For every bound: the resource, the bound, the least value that can be reached for it alone, and the value of
        the uncompressed model.
    """

    def __init__(self, message: str, rows: Sequence[tuple[str, float, float, float]] = ()) -> None:
        self.rows = tuple(rows)
        lines = [message]
        if rows:
            lines.append(f"  {'resource':<10}{'asked':>16}{'least reachable':>18}{'dense':>16}")
            lines += [f"  {r:<10}{a:>16,.0f}{least:>18,.0f}{d:>16,.0f}" for r, a, least, d in rows]
        super().__init__("\n".join(lines))


class RankError(RankfoldError, ValueError):
    """A rank that the layer and method do not allow."""


class UnsupportedLayer(RankfoldError, TypeError):
    """A method was asked to factor a layer that it cannot factor."""


class GaugeError(RankfoldError, ValueError):
    """A layer whose factors cannot be gauged: nothing is there to gauge, or rounding would change what it computes."""


class ComputedWeightError(RankfoldError, RuntimeError):
    """A write to a weight that is computed from factors whenever it is read: it would be lost.

    A `RuntimeError`, as torch raises for other writes in place; as a `TypeError`, Python would try ``a + b`` for
    ``a += b``.
    """


class InvalidWeight(RankfoldError, ValueError):
    """A weight that holds NaN or infinity, or is not initialised."""


class NoMatchingLayer(RankfoldError, ValueError):
    """A name pattern or type that selects nothing."""


class PlanMismatch(RankfoldError, ValueError):
    """A plan that belongs to another model; the message names every difference."""


class CorruptArtifact(RankfoldError):
    """A file that is truncated, edited, of another program or of a newer version."""


class DataError(RankfoldError, ValueError):
    """Data that is missing, empty or of the wrong form."""


class ModelError(RankfoldError, ValueError):
    """A model that cannot be run, copied or compressed as it is."""


class MetricError(RankfoldError, ValueError):
    """A metric that returned something else than a finite number."""


class MissingExtra(RankfoldError, ImportError):
    """A feature whose optional package is not installed.

    Parameters
    ----------
    feature : str
        What the user asked for.
    extra : str
        The extra of rankfold that brings the package.
    package : str
        The package that is missing.
    """

    def __init__(self, feature: str, extra: str, package: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "rankfold[{extra}]"'
        )


class RankfoldWarning(UserWarning):
    """Something the user should know that does not stop the work; its message is as safe to show as an error's."""

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(_message(message), *more)


def _message(message: object) -> str:
    return shortened(printable(str(message)))
