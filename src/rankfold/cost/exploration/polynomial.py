"""Costs as polynomials in the ranks, fitted to a few prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankfold.records import Ranks

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Multilinear:
    """A polynomial that is affine in each rank; each term is (positions of the ranks in a product, coefficient)."""

    terms: tuple[tuple[tuple[int, ...], int], ...]

    def __call__(self, ranks: Ranks) -> int:
        """Return the value at one rank setting, exact."""
        return sum(c * math.prod(ranks[p] for p in positions) for positions, c in self.terms)

    def along(self, axis: int, ranks: Sequence[Ints]) -> tuple[Ints, Ints]:
        """Return constant and slope in the rank at `axis`, given arrays of ranks (the one at `axis` is ignored)."""
        shape = ranks[0].shape
        constant, slope = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for positions, coefficient in self.terms:
            value: Ints | int = coefficient
            for position in positions:
                if position != axis:
                    value = value * ranks[position]
            if axis in positions:
                slope += value
            else:
                constant += value
        return constant, slope

    def text(self, names: Sequence[str]) -> str:
        """Return the polynomial as text, such as ``64·r1 + 3·r1·r2``."""
        parts = [
            "·".join([*([f"{c:,}"] if c != 1 or not positions else []), *(names[p] for p in positions)])
            for positions, c in self.terms
        ]
        return " + ".join(parts) or "0"


def fit(value: Callable[[Ranks], Sequence[int]], lows: Ranks, highs: Ranks) -> list[Multilinear]:
    """Return the multilinear polynomials that equal `value` on a box of ranks.

    `value` is evaluated at the 2^k corners of the lowest cell of the box, where k ranks have more than one value. The
    caller must check that it is multilinear.
    """
    free = [axis for axis, (low, high) in enumerate(zip(lows, highs, strict=True)) if low < high]
    corners: list[Sequence[int]] = []
    for corner in range(2 ** len(free)):
        ranks = list(lows)
        for bit, axis in enumerate(free):
            ranks[axis] += corner >> bit & 1
        corners.append(value(tuple(ranks)))
    return [Multilinear(_terms([corner[i] for corner in corners], free, lows)) for i in range(len(corners[0]))]


def _terms(values: list[int], free: Sequence[int], lows: Ranks) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Turn values at the corners into coefficients, one rank after the other.

    Bit b of an index is first the step of the b-th free rank from its lowest value, then its power.
    """
    for bit, axis in enumerate(free):
        for i in range(len(values)):
            if not i >> bit & 1:
                slope = values[i | 1 << bit] - values[i]
                values[i] -= lows[axis] * slope
                values[i | 1 << bit] = slope
    terms = [
        (tuple(axis for bit, axis in enumerate(free) if powers >> bit & 1), coefficient)
        for powers, coefficient in enumerate(values)
        if coefficient
    ]
    return tuple(sorted(terms, key=lambda term: (len(term[0]), term[0])))
