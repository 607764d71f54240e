"""The errors and warnings that rankfold raises deliberately.

Each message states what is wrong (with the layer or option and its value) and what to do. The command line prints it
without a traceback and exits with code 2. In text quoted from files and models, control characters are escaped, and a
message is cut to 2,000 characters.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from rankfold._printable import printable, quoted, shortened

_LONGEST_NAME = 200  # comparing names is quadratic in their length


class RankfoldError(Exception):
    """Base class of all errors that rankfold raises deliberately."""

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(_message(message), *more)


class UnknownNameError(RankfoldError, ValueError):
    """An unknown name of a method, strategy, option, data set or similar.

    Parameters
    ----------
    kind : str
        The kind of name in messages, such as ``"method"``.
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
        listed = f"Choose from: {', '.join(names)}." if names else "There are none."
        super().__init__(f"unknown {kind} {quoted(name)}{owner}.{hint} {listed}")


class ConfigError(RankfoldError, ValueError):
    """An option with an invalid value."""


class BudgetError(RankfoldError, ValueError):
    """A budget that cannot be parsed, or that has no effect."""


UNITS = {"flash": "bytes", "ram": "bytes", "latency": "ns"}
"""Units of the built-in resources that are not counts, as in `rankfold.records.RESOURCES`."""


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
            names = [_with_unit(row[0]) for row in rows]
            width = max(10, *map(len, names))
            lines.append(f"  {'resource':<{width}}{'asked':>16}{'least reachable':>18}{'dense':>16}")
            for name, (_, asked, least, dense) in zip(names, rows, strict=True):
                lines.append(f"  {name:<{width}}{asked:>16,.0f}{least:>18,.0f}{dense:>16,.0f}")
        super().__init__("\n".join(lines))


def _with_unit(resource: str) -> str:
    unit = UNITS.get(resource.partition("(")[0])
    return resource if unit is None else f"{resource}, {unit}"


class NoisyMachine(RankfoldError, RuntimeError):
    """A time that cannot be told, because other programs use the machine."""


class RankError(RankfoldError, ValueError):
    """A rank that is invalid for the layer and method."""


class UnsupportedLayer(RankfoldError, TypeError):
    """A layer that a method cannot factor."""


class GaugeError(RankfoldError, ValueError):
    """A layer whose factors cannot be gauged: it has nothing to gauge, or rounding would change its output."""


class ComputedWeightError(RankfoldError, RuntimeError):
    """A write to a weight that is computed from factors whenever it is read, so the write would be lost.

    It is a `RuntimeError`, as torch raises for other in-place writes; for a `TypeError`, Python would evaluate
    ``a += b`` as ``a + b``.
    """


class AttentionError(RankfoldError, RuntimeError):
    """A mask or an input that a separated attention does not support; a `RuntimeError`, like those of torch."""


class InvalidWeight(RankfoldError, ValueError):
    """A weight that contains NaN or infinity, or is not initialized."""


class NoMatchingLayer(RankfoldError, ValueError):
    """A layer name, pattern or type that matches nothing."""

    @classmethod
    def of(cls, owner: str, name: str, names: Sequence[str]) -> NoMatchingLayer:
        """Return the error for a name that the owner lacks; the message has the nearest name, or the first ones.

        Parameters
        ----------
        owner : str
            What has the layers, such as ``"the plan"``.
        name : str
            The name that was not found.
        names : sequence of str
            Every valid name.
        """
        near = difflib.get_close_matches(str(name)[:_LONGEST_NAME], names, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Its layers: {', '.join(map(repr, names[:5])) or 'none'}."
        return cls(f"{owner} has no layer {quoted(name)}. {hint}")


class PlanMismatch(RankfoldError, ValueError):
    """A plan for another model; the message lists the differences."""


class CorruptArtifact(RankfoldError):
    """A file that is truncated, edited, written by another program, or of a newer version."""


class DataError(RankfoldError, ValueError):
    """Data that is missing, empty or in the wrong format."""


class ModelError(RankfoldError, ValueError):
    """A model that cannot be run, copied or compressed as it is."""


class MetricError(RankfoldError, ValueError):
    """A metric that did not return a finite number."""


class MissingExtra(RankfoldError, ImportError):
    """A feature whose optional package is not installed.

    Parameters
    ----------
    feature : str
        The requested feature.
    extra : str
        The extra of rankfold that includes the package.
    package : str
        The missing package.
    """

    def __init__(self, feature: str, extra: str, package: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "rankfold[{extra}]"'
        )


class RankfoldWarning(UserWarning):
    """A warning of rankfold; its message is escaped and shortened like that of an error."""

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(_message(message), *more)


def _message(message: object) -> str:
    return shortened(printable(str(message)))
