"""A method's rank settings as boxes, with one polynomial per box for every cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rankfold import methods
from rankfold.cost.count import blueprint_cost
from rankfold.cost.exploration.polynomial import Multilinear, fit
from rankfold.errors import RankfoldError
from rankfold.records import ConvSpec, Cost, LayerInfo, LinearSpec, Ranks

LARGEST = 2**62
"""Limit of costs, which are 64-bit integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A box of rank settings ``lows <= ranks <= highs`` with its costs.

    `options` are those of the method in this box (the tensor shape of ``ttm``). Each of `bonds` consists of the
    positions of two ranks and a size n: a rank of more than n times the other is useless.
    """

    options: Mapping[str, Any]
    lows: Ranks
    highs: Ranks
    params: Multilinear
    macs: Multilinear
    fm: Multilinear
    bonds: tuple[tuple[int, int, int], ...] = ()

    @property
    def settings(self) -> int:
        """Number of rank settings in the box."""
        return math.prod(high - low + 1 for low, high in zip(self.lows, self.highs, strict=True))


def price(method: methods.Method, layer: LayerInfo, ranks: Ranks) -> Cost:
    """Return the cost of one rank setting."""
    return blueprint_cost(method.blueprint(layer, ranks), layer)


def pieces(
    name: str, layer: LayerInfo, options: Mapping[str, Any], cores: int, *, useful: bool = False
) -> Iterator[Piece]:
    """Yield disjoint boxes that contain all rank settings of a method on a layer, with bonds if `useful`."""
    for added in methods.get(name, options).variants(layer, cores):
        variant = {**options, **added}
        method = methods.get(name, variant)
        for lows, highs in _boxes(method, layer):
            piece = _piece(method, layer, variant, lows, highs)
            yield replace(piece, bonds=_bonds(method, layer, lows, highs)) if useful else piece


def _boxes(method: methods.Method, layer: LayerInfo) -> Iterator[tuple[Ranks, Ranks]]:
    """Separate the largest value of each rank if its stages differ, as those of a Tucker factor of full rank do."""
    limits = method.max_ranks(layer)
    usual = _stages(method, layer, (1,) * len(limits))
    intervals: list[list[tuple[int, int]]] = []
    for axis, limit in enumerate(limits):
        full = tuple(limit if a == axis else 1 for a in range(len(limits)))
        alike = limit == 1 or _stages(method, layer, full) == usual
        intervals.append([(1, limit)] if alike else [(1, limit - 1), (limit, limit)])
    for box in itertools.product(*intervals):
        yield tuple(low for low, _ in box), tuple(high for _, high in box)


def _stages(method: methods.Method, layer: LayerInfo, ranks: Ranks) -> list[tuple[type, str]]:
    return [(type(stage), stage.name) for stage in method.blueprint(layer, ranks).stages]


def _bonds(method: methods.Method, layer: LayerInfo, lows: Ranks, highs: Ranks) -> tuple[tuple[int, int, int], ...]:
    """Return the pairs of ranks that limit each other: those of a factor with ``n * r_a * r_b`` elements per group.

    As a matrix with ``r_a`` rows, such a factor has ``n * r_b`` columns, and more rows than columns are useless.
    """

    def sizes(ranks: Ranks) -> list[int]:
        stages = method.blueprint(layer, ranks).stages
        convs = [math.prod(stage.factor_shape[1:]) for stage in stages if isinstance(stage, ConvSpec)]
        return convs + [math.prod(stage.factor_shape) for stage in stages if isinstance(stage, LinearSpec)]

    products = [polynomial.terms for polynomial in fit(sizes, lows, highs)]
    return tuple((*terms[0][0], terms[0][1]) for terms in products if len(terms) == 1 and len(terms[0][0]) == 2)


def _piece(method: methods.Method, layer: LayerInfo, options: Mapping[str, Any], lows: Ranks, highs: Ranks) -> Piece:
    def value(ranks: Ranks) -> tuple[int, int, int]:
        cost = price(method, layer, ranks)
        return cost.params, cost.macs, cost.fm

    polynomials = fit(value, lows, highs)
    middle = tuple((low + high) // 2 for low, high in zip(lows, highs, strict=True))
    for ranks in {middle, highs}:
        exact = value(ranks)
        if tuple(polynomial(ranks) for polynomial in polynomials) != exact:
            raise RankfoldError(
                f"the exploration space of {method.name!r} cannot be counted: its cost on {layer.title} is not affine "
                f"in each rank (ranks {list(ranks)}). Leave the method out."
            )
        if max(exact) >= LARGEST:
            raise RankfoldError(
                f"{layer.title} has {max(exact):,} MACs, which is too many to count. Use smaller inputs."
            )
    params, macs, fm = polynomials
    return Piece(options=options, lows=lows, highs=highs, params=params, macs=macs, fm=fm)
