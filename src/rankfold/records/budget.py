"""Budgets: upper bounds on the compressed model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from rankfold.errors import BudgetError, UnknownNameError
from rankfold.records.cost import RESOURCES, Cost

_UNITS = {
    "": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_IN_BYTES = ("flash",)
_BOUND = re.compile(r"^\s*([a-z_]+)\s*(<=|/)\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*|%)\s*$", re.I)
_ALIASES = {"parameters": "params", "bytes": "flash"}
_EXAMPLES = 'such as "params<=25%", "params/4", "macs<=0.5" or "flash<=512KiB"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """At most `value` of a resource: a share of the dense model's if `relative`, else an amount, rounded down."""

    resource: str
    value: float
    relative: bool

    def __post_init__(self) -> None:
        if self.resource not in RESOURCES:
            raise UnknownNameError("budget resource", self.resource, RESOURCES)
        if not math.isfinite(self.value):
            raise BudgetError(
                f"budget {self.resource}<={self.value:g}: the bound must be a finite number, {_EXAMPLES}."
            )
        if not self.relative:
            object.__setattr__(self, "value", math.floor(round(self.value, 6)))  # 1.1 * 1e3 is not quite 1100
        if not self.value > 0:
            raise BudgetError(
                f"budget {self.resource}<={self.value:g} asks for nothing to be left; "
                f"the bound must be positive, {_EXAMPLES}."
            )
        if self.relative and self.value > 1:
            raise BudgetError(
                f"budget {self.resource}<={self.value:.0%} is more than the whole model; "
                "a relative bound lies between 0 and 100 %."
            )

    def limit(self, dense: Cost) -> int:
        """Return the absolute amount, rounded down."""
        if not self.relative:
            return int(self.value)
        # The float 0.29 is a little less than 29 %, which may not cost a unit.
        share = Fraction(self.value).limit_denominator(10**6)
        exact = share if float(share) == self.value else Fraction(self.value)
        return math.floor(exact * dense.get(self.resource))

    def __str__(self) -> str:
        """Write the bound so that `Budget.parse` reads the very same number again."""
        if not self.relative:
            amount = f"{self.value:.0f}" if self.value > 1 else "0.001k"  # a bare 1 is the share of 100 %
            return f"{self.resource}<={amount}"
        percent = f"{self.value * 100:g}"
        if float(percent) / 100 == self.value:
            return f"{self.resource}<={percent}%"
        divisor = round(1 / self.value) if self.value > 1e-9 else 0
        if divisor and 1 / divisor == self.value:
            return f"{self.resource}/{divisor}"
        return f"{self.resource}<={self.value!r}"


@dataclass(frozen=True, slots=True)
class Budget:
    """One or more upper bounds that all have to hold.

    Examples
    --------
    >>> str(Budget.parse("params<=25%, macs<=0.5"))
    'params<=25%, macs<=50%'
    >>> str(Budget.parse("params/4"))
    'params<=25%'
    >>> str(Budget.parse("flash<=512KiB"))
    'flash<=524288'
    """

    bounds: tuple[Bound, ...]

    def __post_init__(self) -> None:
        if not self.bounds:
            raise BudgetError(f"the budget is empty; give at least one bound, {_EXAMPLES}.")

    @classmethod
    def parse(cls, budget: str | Mapping[str, float | str] | Iterable[str] | Budget) -> Budget:
        """Read a budget.

        Parameters
        ----------
        budget : str, mapping, list of str or Budget
            ``"params<=25%"``, ``"params/4"`` (at most a quarter), ``"macs<=0.5"`` (a number up to 1 without a unit is
            a share), ``"flash<=512KiB"``; several joined by commas or in a list; or a mapping such as ``{"params":
            0.25, "flash": "512KiB"}``.

        Raises
        ------
        BudgetError
            If it cannot be read, is empty, not positive, or above 100 %.
        UnknownNameError
            If the resource does not exist.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            texts = [t for t in re.split(r"[,;]\s*(?=[A-Za-z_])", budget) if t.strip()]
        elif isinstance(budget, Mapping):
            texts = [f"{key}<={str(value).strip().removeprefix('<=')}" for key, value in budget.items()]
        elif isinstance(budget, Iterable):
            texts = [str(t) for t in budget]
        else:
            raise BudgetError(f"a budget is a string, mapping or Budget, {_EXAMPLES}. Got {budget!r} instead.")
        return cls(tuple(_parse_bound(text) for text in texts))

    def exceeded(self, cost: Cost, dense: Cost) -> list[Bound]:
        """Return the bounds that `cost` breaks."""
        return [b for b in self.bounds if cost.get(b.resource) > b.limit(dense)]

    def __str__(self) -> str:
        return ", ".join(map(str, self.bounds))


def _parse_bound(text: str) -> Bound:
    match = _BOUND.match(text)
    if match is None:
        raise BudgetError(f"budget {text!r} cannot be read; write it as RESOURCE<=AMOUNT or RESOURCE/N, {_EXAMPLES}.")
    name, operator, digits, unit = match.groups()
    resource = _ALIASES.get(name.lower(), name.lower())
    number = float(digits.replace(",", "").replace("_", ""))
    if operator == "/":
        if unit or number < 1:
            raise BudgetError(f"budget {text!r}: the divisor must be a plain number of at least 1, {_EXAMPLES}.")
        return Bound(resource=resource, value=1 / number, relative=True)
    if unit == "%":
        return Bound(resource=resource, value=number / 100, relative=True)
    if unit.lower() not in _UNITS:
        raise BudgetError(f"budget {text!r}: unknown unit {unit!r}; use %, k, M, G, kB, MB, KiB, MiB or none.")
    if unit.lower().endswith("b") and resource not in _IN_BYTES:
        raise BudgetError(
            f"budget {text!r}: {unit} counts bytes, {resource} does not. Bound flash, or use k, M, G or no unit."
        )
    relative = unit == "" and number <= 1
    return Bound(resource=resource, value=number * _UNITS[unit.lower()], relative=relative)
