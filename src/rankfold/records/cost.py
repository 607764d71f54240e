"""Costs of layers and models, and the resources that a budget can bound."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from rankfold.errors import BudgetError, ConfigError, UnknownNameError
from rankfold.records.amounts import count, either, elapsed, size
from rankfold.records.blueprint import Blueprint
from rankfold.records.layer import LayerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Costs that add up over layers.

    Parameters
    ----------
    params : int
        Parameters (biases included).
    macs : int
        Multiply-accumulates of one forward pass on the example input; FLOPs are twice as many.
    fm : int
        Feature-map elements written, intermediate ones included.
    weight_bytes : int
        Bytes of the parameters at their deployment data type.
    more : mapping of str to int
        Amounts of further resources (those with a `Resource.layer`) and of parts of the model, by name.
    """

    params: int = 0
    macs: int = 0
    fm: int = 0
    weight_bytes: int = 0
    more: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def memory(self) -> int:
        """Parameters plus feature-map elements, the "overall memory" of Kokhazadeh et al. (2025), section 4."""
        return self.params + self.fm

    def __add__(self, other: Cost) -> Cost:
        return self._plus(other, 1)

    def __sub__(self, other: Cost) -> Cost:
        return self._plus(other, -1)

    def _plus(self, other: Cost, sign: int) -> Cost:
        return Cost(
            params=self.params + sign * other.params, macs=self.macs + sign * other.macs, fm=self.fm + sign * other.fm,
            weight_bytes=self.weight_bytes + sign * other.weight_bytes,
            more={r: self.more.get(r, 0) + sign * other.more.get(r, 0) for r in {**self.more, **other.more}},
        )  # fmt: skip

    def get(self, resource: str) -> int:
        """Return the amount of one additive resource, by its name in budgets."""
        if resource in self.more:
            return self.more[resource]
        if resource.partition("(")[0] not in RESOURCES:
            raise UnknownNameError("resource", resource, RESOURCES)
        return find_resource(resource).of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A quantity that a budget can bound.

    Parameters
    ----------
    name : str
        Name in budgets and on the command line.
    title : str
        Name in reports.
    summary : str
        Short description.
    kind : {"additive", "measured", "peak", "accuracy"}
        Whether the amount of a model is the sum over its layers, is measured and nearly such a sum (the amount of a
        layer is then that of `rankfold.cost.Pricing.times`), is a maximum, or a measured difference of a metric.
    aliases : tuple of str
        Other names in budgets.
    units : mapping of str to float
        Suffixes of amounts in budgets, with their values; case-insensitive. ``k``, ``M`` and ``G`` always exist.
    show : callable
        Formats an amount.
    amount : callable or None
        Returns the amount in a `Cost`, for resources that are counted from shapes.
    layer : callable or None
        ``layer(layer, blueprint)`` returns the amount of one layer as a nonnegative integer; `blueprint` is None for
        the dense layer. It is called for every candidate if a budget bounds the resource. The rest of the model counts
        as 0.
    part : str or None
        Shell pattern of the modules that count, such as ``"encoder.*"``; None is the whole model.
    """

    name: str
    title: str
    summary: str
    kind: Literal["additive", "measured", "peak", "accuracy"] = "additive"
    aliases: tuple[str, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)
    show: Callable[[float], str] = count
    amount: Callable[[Cost], int] | None = None
    layer: Callable[[LayerInfo, Blueprint | None], int] | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.part is None and not re.fullmatch("[a-z_]+", self.name):
            raise ConfigError(
                f"the name of a resource must consist of lower-case letters and _. Got {self.name!r} instead."
            )
        if (self.kind == "additive") != ((self.amount is None) != (self.layer is None)):
            raise ConfigError(
                f"resource {self.name!r} is {self.kind}. An additive resource needs either 'amount' or 'layer', others "
                "need neither."
            )

    @property
    def whole(self) -> str:
        """The name of the same resource of the whole model."""
        return self.name.partition("(")[0]

    def of_part(self, part: str) -> Resource:
        """Return this resource of a part of the model; raise `BudgetError` if it is not a sum over layers."""
        name = f"{self.name}({part})"
        if not re.fullmatch(r"[^\s(),;<=/]+", part):
            raise BudgetError(
                f"{name} must name a part by one shell pattern of modules, such as {self.name}(encoder.*). "
                f"Got {part!r} instead."
            )
        if self.kind != "additive":
            raise BudgetError(
                f"{name} cannot be bounded: {self.title} belongs to the whole model. Write {self.name} without a part, "
                f"or bound {either([r.name for r in RESOURCES.values() if r.amount is not None])} of a part."
            )
        return replace(self, name=name, title=f"{self.title} of {part}", aliases=(), part=part)

    def of(self, cost: Cost) -> int:
        """Return the amount in a cost; raise `BudgetError` if the cost was counted without this resource."""
        if self.amount is not None and self.part is None:
            return self.amount(cost)
        if self.kind == "measured" and self.name not in cost.more:
            raise BudgetError(
                f"{self.name} was not measured. Bound it in the budget of rankfold.plan or rankfold.compress."
            )
        if self.name not in cost.more:
            raise BudgetError(
                f"{self.name} was not priced. Name it in the budget, or in resources=... of rankfold.cost.Pricing."
            )
        return cost.more[self.name]


PEAK = "ram"
"""Peak RAM in bytes, the resource that does not add up over layers."""

LATENCY = "latency"
"""Time of one forward pass in nanoseconds: measured, and nearly a sum over the layers."""

ACCURACY = "accuracy_drop"
"""Loss of accuracy: a difference of the metric, not a share of it."""

_SECONDS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource(
            name="params", title="parameters", summary="parameters", aliases=("parameters",),
            amount=attrgetter("params"),
        ),
        Resource(
            name="macs", title="MACs", summary="multiply-accumulates",
            amount=attrgetter("macs"),
        ),
        Resource(
            name="flash", title="weights", summary="bytes of the weights",
            aliases=("bytes",), units=_BYTES, show=size, amount=attrgetter("weight_bytes"),
        ),
        Resource(
            name="fm", title="feature-map elements", summary="feature-map elements",
            amount=attrgetter("fm"),
        ),
        Resource(name="memory", title="overall memory", summary="params + fm", amount=attrgetter("memory")),
        Resource(
            name=PEAK, title="peak RAM", summary="peak bytes of the activations", kind="peak",
            units=_BYTES, show=size,
        ),
        Resource(
            name=LATENCY, title="latency", summary="measured time of a forward pass", kind="measured",
            units=_SECONDS, show=elapsed,
        ),
        Resource(
            name=ACCURACY, title="accuracy drop", summary="loss of the metric",
            kind="accuracy", show="{:.4g}".format,
        ),
    )
}  # fmt: skip
"""Every resource by name, in the order of reports."""


def register_resource(resource: Resource) -> None:
    """Add a resource; raise `ConfigError` if the name or an alias is taken."""
    taken = {name for r in RESOURCES.values() for name in (r.name, *r.aliases)}
    if taken & {resource.name, *resource.aliases}:
        raise ConfigError(f"resource {resource.name!r} is already registered. Use another name, and other aliases.")
    RESOURCES[resource.name] = resource


def find_resource(name: str) -> Resource:
    """Return a resource by its name or an alias, such as ``"params"``, or of a part, such as ``"params(encoder.*)"``.

    Raises
    ------
    UnknownNameError
        If there is no such resource; the message has the nearest name.
    BudgetError
        If the resource of a part is not a sum over layers.
    """
    plain, parenthesis, part = name.strip().removesuffix(")").partition("(")
    for resource in RESOURCES.values():
        if plain.strip().lower() in (resource.name, *resource.aliases):
            return resource.of_part(part.strip()) if parenthesis else resource
    raise UnknownNameError("budget resource", plain, RESOURCES)


def resource_names(*kinds: str) -> list[str]:
    """Return the names of the resources of some kinds, by default of all kinds."""
    return [r.name for r in RESOURCES.values() if not kinds or r.kind in kinds]


def replaced(total: Cost, before: Mapping[str, Cost], after: Mapping[str, Cost]) -> Cost:
    """Return the cost of a whole model with the costs of some layers replaced, by layer name."""
    return sum((cost - before[name] for name, cost in after.items()), start=total)
