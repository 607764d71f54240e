"""Budgets: upper bounds on the compressed model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rankfold.errors import BudgetError
from rankfold.records.amounts import either
from rankfold.records.cost import ACCURACY, RESOURCES, Cost, Resource, find_resource

_COUNTS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
_AMOUNT = r"[0-9][0-9_,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_BOUND = re.compile(rf"^\s*([a-z_]+(?:\s*\([^(),;]*\))?)\s*(<=|/)\s*({_AMOUNT})\s*([a-z]*|%)\s*$", re.I)
_SEPARATOR = re.compile(r"[,;]\s*(?=[A-Za-z_])(?![^(]*\))")  # not inside parentheses
_EXAMPLES = 'such as "params<=25%", "params/4", "macs<=0.5", "flash<=512KiB" or "params(encoder.*)<=50%"'
_PARTS = 'Bound each part separately, such as "params(encoder.*)<=50%, params(decoder.*)<=60%".'
_DROPS = 'such as "accuracy_drop<=1%" (0.92 may become 0.91) or, equivalently, "accuracy_drop<=0.01"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An upper bound on a resource: a share of the dense model if `relative`, otherwise an amount, rounded down.

    The resource may be that of a part of the model, such as ``"params(encoder.*)"``; its shares are then those of the
    part's cost.
    A bound on ``accuracy_drop`` is a difference of the metric in [0, 1); it is neither relative nor rounded.
    """

    resource: str
    value: float
    relative: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "resource", find_resource(self.resource).name)
        if not math.isfinite(self.value):
            raise BudgetError(f"budget {self.resource}<={self.value:g}: the bound must be finite, {_EXAMPLES}.")
        if self.kind == "accuracy":
            if self.relative or not 0 <= self.value < 1:
                raise BudgetError(
                    f"budget {self.resource}<={self.value:g}: the drop is a difference of the metric from 0 up to "
                    f"100 %, {_DROPS}."
                )
            return
        if not self.relative:
            object.__setattr__(self, "value", math.floor(round(self.value, 6)))  # 1.1 * 1e3 is slightly below 1100
        if not self.value > 0:
            raise BudgetError(
                f"budget {self.resource}<={self.value:g} would leave nothing; the bound must be positive, {_EXAMPLES}."
            )
        if self.relative and self.value > 1:
            raise BudgetError(
                f"budget {self.resource}<={self.value:.0%} is more than the whole {'part' if self.part else 'model'}; "
                "a relative bound lies between 0 and 100 %."
            )

    @property
    def kind(self) -> Literal["additive", "measured", "peak", "accuracy"]:
        """The resource's `Resource.kind`."""
        return find_resource(self.resource).kind

    @property
    def adds_up(self) -> bool:
        """Whether the amount of a model is the sum over its layers, exactly or nearly, and stands in a `Cost`."""
        return self.kind in ("additive", "measured")

    @property
    def part(self) -> str | None:
        """The resource's `Resource.part`, such as ``"encoder.*"``; None is the whole model."""
        return find_resource(self.resource).part

    def limit(self, dense: Cost | int) -> int:
        """Return the absolute limit, rounded down, given the dense model's cost, or its peak in bytes for ``ram``."""
        if self.kind == "accuracy" or isinstance(dense, Cost) != self.adds_up:
            raise BudgetError(
                f"a bound on {self.resource} has no limit in terms of {type(dense).__name__}: give the dense model's "
                "Cost for additive resources and its peak in bytes for ram; accuracy_drop has no limit."
            )
        if not self.relative:
            return int(self.value)
        # The float 0.29 is slightly below 29 %, which must not lower the limit by one.
        share = Fraction(self.value).limit_denominator(10**6)
        exact = share if float(share) == self.value else Fraction(self.value)
        return math.floor(exact * (dense.get(self.resource) if isinstance(dense, Cost) else dense))

    def __str__(self) -> str:
        """Return the bound in the notation of `Budget.parse`, without loss of precision."""
        if not self.relative and self.kind != "accuracy":
            amount = f"{self.value:.0f}" if self.value > 1 else "0.001k"  # a plain 1 means 100 %
            return f"{self.resource}<={amount}"
        percent = f"{self.value * 100:g}"
        if float(percent) / 100 == self.value:
            return f"{self.resource}<={percent}%"
        divisor = round(1 / self.value) if self.relative and self.value > 1e-9 else 0
        if divisor and 1 / divisor == self.value:
            return f"{self.resource}/{divisor}"
        return f"{self.resource}<={self.value!r}"


@dataclass(frozen=True, slots=True)
class Budget:
    """One or more upper bounds, all of which must hold.

    Examples
    --------
    >>> str(Budget.parse("params<=25%, macs<=0.5"))
    'params<=25%, macs<=50%'
    >>> str(Budget.parse("params/4"))
    'params<=25%'
    >>> str(Budget.parse("flash<=512KiB"))
    'flash<=524288'
    >>> str(Budget.parse("ram<=256KiB, accuracy_drop<=0.01"))
    'ram<=262144, accuracy_drop<=1%'
    >>> str(Budget.parse("params(encoder.*)/2, params<=60%"))
    'params(encoder.*)<=50%, params<=60%'
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
            ``"params<=25%"``, ``"params/4"`` (at most a quarter), ``"macs<=0.5"`` (without a unit, a number up to 1 is
            a share), ``"flash<=512KiB"``, ``"ram<=50%"``, ``"accuracy_drop<=1%"``. Several bounds are separated by
            commas, or given as a list or as a mapping such as ``{"params": 0.25, "flash": "512KiB"}``. A pattern in
            parentheses bounds a part of the model: ``"params(encoder.*)<=50%"``.

        Raises
        ------
        BudgetError
            If the budget cannot be parsed, is empty, not positive, or above 100 %.
        UnknownNameError
            If the resource does not exist.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            texts = [t for t in _SEPARATOR.split(budget) if t.strip()]
        elif isinstance(budget, Mapping):
            texts = [f"{key}<={str(value).strip().removeprefix('<=')}" for key, value in budget.items()]
        elif isinstance(budget, Iterable):
            texts = [str(t) for t in budget]
        else:
            raise BudgetError(f"a budget must be a string, mapping or Budget, {_EXAMPLES}. Got {budget!r} instead.")
        return cls(tuple(_parse_bound(text) for text in texts))

    @property
    def additive(self) -> tuple[Bound, ...]:
        """The bounds on resources that add up over layers, exactly or nearly."""
        return tuple(b for b in self.bounds if b.adds_up)

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of the bounded resources."""
        return tuple(dict.fromkeys(b.resource for b in self.bounds))

    def get(self, resource: str) -> tuple[Bound, ...]:
        """Return the bounds on one resource, such as ``"ram"``, of the whole model and of its parts."""
        return tuple(b for b in self.bounds if find_resource(b.resource).whole == resource)

    def limit(self, resource: str, dense: Cost | int) -> int | None:
        """Return the tightest limit on one resource (see `Bound.limit`), or None if it is not bounded.

        The resource may be that of a part, such as ``"params(encoder.*)"``.
        """
        return min((b.limit(dense) for b in self.bounds if b.resource == resource), default=None)

    def rows(self, dense: Cost, least: Callable[[str], int]) -> list[tuple[str, int, int, int]]:
        """Return, for each additive bound, the resource, the limit, the least possible and the dense amount."""
        return [(b.resource, b.limit(dense), least(b.resource), dense.get(b.resource)) for b in self.additive]

    def without(self, resource: str) -> Budget | None:
        """Return the budget without the bounds on one resource, or None if no bound remains."""
        left = tuple(b for b in self.bounds if b.resource != resource)
        return Budget(left) if left else None

    @property
    def counted(self) -> Budget | None:
        """The budget without the bounds that only a measurement can check, or None if no bound remains."""
        left = tuple(b for b in self.bounds if b.kind not in ("accuracy", "measured"))
        return Budget(left) if left else None

    def share_hint(self) -> str:
        """Return advice about amounts of at most 100, which may be meant as percentages."""
        amounts = [b for b in self.additive if not b.relative and 1 < b.value <= 100]
        return " ".join(f"{b} is an amount; for a share, write {b}%." for b in amounts)

    def exceeded(self, cost: Cost, dense: Cost, *, ram: tuple[int, int] | None = None) -> list[Bound]:
        """Return the bounds that a model exceeds.

        `ram` holds the peaks of the model and of the dense model in bytes. Without it, bounds on ``ram`` are skipped.
        """
        broken = []
        for bound in self.bounds:
            if bound.adds_up and cost.get(bound.resource) > bound.limit(dense):
                broken.append(bound)
            if bound.kind == "peak" and ram is not None and ram[0] > bound.limit(ram[1]):
                broken.append(bound)
        return broken

    def __str__(self) -> str:
        return ", ".join(map(str, self.bounds))


def _parse_bound(text: str) -> Bound:
    match = _BOUND.match(text)
    if match is None:
        if re.match(r"\s*[a-z_]+\s*\([^)]*[,;]", text, re.I):
            raise BudgetError(f"budget {text!r}: a part is one shell pattern. {_PARTS}")
        raise BudgetError(f"budget {text!r} cannot be read. Write RESOURCE<=AMOUNT or RESOURCE/N, {_EXAMPLES}.")
    name, operator, digits, unit = match.groups()
    resource = find_resource(name)
    number = float(digits.replace(",", "").replace("_", ""))
    if resource.name == ACCURACY:
        if operator == "/" or unit not in ("", "%"):
            raise BudgetError(f"budget {text!r}: the drop is a difference of the metric, {_DROPS}.")
        return Bound(resource=resource.name, value=number / 100 if unit else number, relative=False)
    if operator == "/":
        if unit or number < 1:
            raise BudgetError(f"budget {text!r}: the divisor must be a plain number of at least 1, {_EXAMPLES}.")
        return Bound(resource=resource.name, value=1 / number, relative=True)
    if unit == "%":
        return Bound(resource=resource.name, value=number / 100, relative=True)
    units = {name.lower(): factor for name, factor in {**_COUNTS, **resource.units}.items()}
    if unit.lower() not in units:
        raise BudgetError(f"budget {text!r}: unknown unit {unit!r} of {resource.name}. {_units_advice(unit, resource)}")
    relative = unit == "" and number <= 1
    return Bound(resource=resource.name, value=number * units[unit.lower()], relative=relative)


def _units_advice(unit: str, resource: Resource) -> str:
    """Return the units of a resource, and the resources that have the given unit."""
    others = [r.name for r in RESOURCES.values() if unit.lower() in map(str.lower, r.units)]
    instead = f", or bound {either(others)}" if others else ""
    return f"Use %, {', '.join(filter(None, (*_COUNTS, *resource.units)))} or no unit{instead}."
