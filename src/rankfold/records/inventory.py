"""Layers and costs of a whole model, without weights."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from rankfold._printable import printable, quoted
from rankfold.errors import NoMatchingLayer
from rankfold.records.cost import Cost
from rankfold.records.deploy import item_bytes
from rankfold.records.display import Shown
from rankfold.records.layer import LayerInfo, enclosing

_NAMED = 4
"""Maximum number of operations in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModule:
    """A module that owns parameters but is not a layer."""

    name: str
    type_name: str
    params: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Shape and data type of a parameter or persistent buffer."""

    shape: tuple[int, ...]
    dtype: str
    is_parameter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCost:
    """What one module, or the modules that share some tensors, hold and compute.

    Parameters
    ----------
    paths : tuple of str
        Every path of these modules; a projection of an attention counts as a module.
    params : int
        Parameters, without those of submodules.
    stored : mapping of str to int
        Elements of parameters and persistent buffers, by data type.
    weight_bytes : int
        Bytes of these.
    macs : int
        Multiply-accumulates outside of layers and submodules.
    tensors : mapping of str to StoredTensor
        The parameters and persistent buffers by their first names, without those that an attention packs.
    """

    paths: tuple[str, ...]
    params: int = 0
    stored: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    macs: int = 0
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)


LARGE_REST = 0.25
"""Share of the parameters from which a module that cannot be compressed is named in the coverage line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A layer or other module that cannot be compressed."""

    name: str  # dotted path; empty for the model itself
    what: str  # description of the layer, or class of the module
    params: int
    share: float  # of the model's parameters
    reason: str

    def __str__(self) -> str:
        name = f"{self.name!r} ({self.what})" if self.name else f"the model itself ({self.what})"
        return f"{name} holds {self.params:,} parameters, {self.share:.0%} of the total ({self.reason})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inventory(Shown):
    """The layers and other modules of a model, with their costs.

    Parameters
    ----------
    layers : tuple of LayerInfo
        Every convolution and linear layer, once each, in order of definition.
    others : tuple of OtherModule
        Every other module that owns parameters.
    total : Cost
        Cost of the whole model on the example input: unique parameters, MACs of every operation, bytes of all
        parameters and buffers, feature maps of the listed layers.
    costs : dict of str to Cost
        Dense cost of each layer, by name.
    example : str
        Description of the example input.
    batch : int
        Number of samples in the example input.
    outside : dict of str to int
        Elements of parameters and persistent buffers outside of the listed layers, by data type.
    uncounted : tuple of str
        Operations whose multiply-accumulates are unknown. If there are any, the total's MACs are a lower bound.
    modules : tuple of ModuleCost
        Every stored tensor once, and the operations outside of layers, by module.
    """

    layers: tuple[LayerInfo, ...]
    others: tuple[OtherModule, ...] = ()
    total: Cost = field(default_factory=Cost)
    costs: dict[str, Cost] = field(default_factory=dict)
    example: str = ""
    batch: int = 1
    outside: dict[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    modules: tuple[ModuleCost, ...] = ()

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return f"<Inventory: {self.summary()}>"

    def layer(self, name: str) -> LayerInfo:
        """Return the layer with this name (or alias); raise `NoMatchingLayer` otherwise."""
        for layer in self.layers:
            if name == layer.name or name in layer.aliases:
                return layer
        raise NoMatchingLayer.of("the model", name, [layer.name for layer in self.layers])

    def part(self, pattern: str) -> Inventory:
        """Return the inventory of a part of the model, such as ``"encoder"`` or ``"encoder.*"``; see `paths_of`."""
        return self.within(self.paths_of(pattern))

    def paths_of(self, pattern: str) -> frozenset[str]:
        """Return the paths of the modules that match a shell pattern; everything inside of them belongs to the part.

        ``"encoder"`` and ``"encoder.*"`` both select the module ``encoder``. The pattern is matched against the paths
        of layers and of other modules with parameters, buffers or MACs, and of the modules that enclose them.

        Raises
        ------
        NoMatchingLayer
            If the pattern matches nothing; the message has the nearest paths.
        """
        names = {"": None, **dict.fromkeys(path for one in self._all_paths() for path in enclosing(one))}
        wanted = pattern.removesuffix(".*") or pattern
        paths = frozenset(name for name in names if fnmatchcase(name, wanted))
        if not paths:
            near = difflib.get_close_matches(wanted, filter(None, names), n=3, cutoff=0.5)
            listed = ", ".join(map(repr, near or [name for name in names if name and "." not in name][:5])) or "none"
            label = "Close matches" if near else "Modules"
            raise NoMatchingLayer(
                f"part {quoted(pattern)} matches no module that has parameters or MACs. {label}: {listed}."
            )
        return paths

    def within(self, paths: Collection[str]) -> Inventory:
        """Return the inventory of the modules at some paths, with everything inside of them.

        A layer or tensor belongs to the part if any of its paths does.
        """
        layers = tuple(layer for layer in self.layers if is_inside(layer.paths, paths))
        modules = tuple(module for module in self.modules if is_inside(module.paths, paths))
        costs = {layer.name: self.costs[layer.name] for layer in layers}
        listed = sum(costs.values(), Cost())
        return replace(
            self,
            layers=layers,
            others=tuple(other for other in self.others if is_inside((other.name,), paths)),
            total=Cost(
                params=sum(module.params for module in modules),
                macs=listed.macs + sum(module.macs for module in modules),
                fm=listed.fm,
                weight_bytes=sum(module.weight_bytes for module in modules),
                more=listed.more,
            ),
            costs=costs,
            outside=outside_elements(modules, layers, costs),
            modules=modules,
        )

    def _all_paths(self) -> Iterator[str]:
        for one in (*self.modules, *self.layers):
            yield from one.paths

    @property
    def compressible(self) -> tuple[LayerInfo, ...]:
        """The layers without a skip reason."""
        return tuple(layer for layer in self.layers if layer.skip is None)

    @property
    def coverage(self) -> tuple[float, float | None]:
        """Shares of the parameters and of the MACs in compressible layers, 0..1; None if not all MACs are known."""
        inside = sum((self.costs[layer.name] for layer in self.compressible), Cost())
        params = inside.params / self.total.params if self.total.params else 0.0
        if self.uncounted:
            return params, None
        return params, inside.macs / self.total.macs if self.total.macs else 0.0

    @property
    def holders(self) -> tuple[Holder, ...]:
        """The layers and other modules whose parameters cannot be compressed, the largest first."""
        rest = [(i.name, i.describe(), self.costs.get(i.name, Cost()).params, i.skip) for i in self.layers if i.skip]
        rest += [(other.name, other.type_name, other.params, other.reason) for other in self.others]
        total = max(self.total.params, 1)
        holders = [
            Holder(name=name, what=what, params=params, share=params / total, reason=reason)
            for name, what, params, reason in rest
        ]
        return tuple(sorted(holders, key=lambda holder: -holder.params))

    @property
    def buffers(self) -> list[tuple[str, int]]:
        """The persistent buffers and their sizes in bytes, the largest first."""
        tensors = [item for module in self.modules for item in module.tensors.items() if not item[1].is_parameter]
        sizes = [(name, math.prod(tensor.shape) * item_bytes(tensor.dtype)) for name, tensor in tensors]
        return sorted(sizes, key=lambda one: -one[1])

    def summary(self) -> str:
        """Return the coverage line at the top of every inspection and report."""
        params, macs = self.coverage
        layers = f"({len(self.compressible)} of {len(self.layers)} layers)"
        if macs is None:
            line = f"compressible: {params:.0%} of parameters {layers}; {counted_in_part(self.uncounted)}"
        else:
            line = f"compressible: {params:.0%} of parameters, {macs:.0%} of MACs {layers}"
        largest = next(iter(self.holders), None)
        if largest is None or largest.share < LARGE_REST:
            return line
        reason = largest.reason.partition(": ")[0]
        return printable(f"{line}; largest rest: {largest.name or 'the model itself'} ({reason}) {largest.share:.0%}")


def is_inside(paths: Iterable[str], modules: Collection[str]) -> bool:
    """Return whether any of the paths is that of one of the modules, or inside of it."""
    return "" in modules or any(outer in modules for path in paths for outer in enclosing(path))


def outside_elements(
    modules: Iterable[ModuleCost], layers: Iterable[LayerInfo], costs: Mapping[str, Cost]
) -> dict[str, int]:
    """Count the elements that are stored outside of the layers, by data type."""
    count: Counter[str] = Counter()
    for module in modules:
        count.update(module.stored)
    for layer in layers:
        count[layer.dtype] -= costs[layer.name].params
    return {dtype: left for dtype, left in sorted(count.items()) if left}


def counted_in_part(uncounted: Sequence[str]) -> str:
    """Return the note for incomplete MACs, such as ``MACs counted in part (not counted: mylib::product)``."""
    return f"MACs counted in part ({not_counted(uncounted)})"


def not_counted(uncounted: Sequence[str]) -> str:
    """Return the first names of operations whose MACs are not counted, and the number of the others."""
    more = f" and {len(uncounted) - _NAMED} more" if len(uncounted) > _NAMED else ""
    return f"not counted: {', '.join(uncounted[:_NAMED])}{more}"
