"""Costs as polynomials in the ranks, found by asking a few prices instead of typing formulas again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankfold.records import Ranks

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Multilinear:
    """A polynomial that is affine in each rank: ``sum of coefficient * product of the ranks at some positions``.

    Parameters
    ----------
    terms : tuple of (positions, coefficient)
        Coefficients that are not zero, by the positions of the ranks that they multiply.
    """

    terms: tuple[tuple[tuple[int, ...], int], ...]

    def __call__(self, ranks: Ranks) -> int:
        """Return the value at one rank setting, exact."""
        return sum(c * math.prod(ranks[p] for p in positions) for positions, c in self.terms)

    def along(self, axis: int, ranks: Sequence[Ints]) -> tuple[Ints, Ints]:
        """Return constant and slope in the rank at `axis`, for arrays of the other ranks (the one at `axis` is unused).

        All arrays must have one shape, which is that of the results.
        """
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
        """Return the polynomial in words, such as ``64·r1 + 3·r1·r2``."""
        parts = [
            "·".join([*([f"{c:,}"] if c != 1 or not positions else []), *(names[p] for p in positions)])
            for positions, c in self.terms
        ]
        return " + ".join(parts) or "0"


def fit(value: Callable[[Ranks], Sequence[int]], lows: Ranks, highs: Ranks) -> list[Multilinear]:
    """Return the multilinear polynomials that `value` consists of on a box of ranks.

    `value` is asked at the 2^k corners of the box's lowest cell (k ranks take more than one value), so it must be
    multilinear on the box, which is the caller's to check. Ranks that take one value are constants.
    """
    free = [axis for axis, (low, high) in enumerate(zip(lows, highs, strict=True)) if low < high]
    corners: list[list[int]] = []
    for steps in itertools.product((0, 1), repeat=len(free)):
        ranks = list(lows)
        for axis, step in zip(free, steps, strict=True):
            ranks[axis] += step
        corners.append(list(value(tuple(ranks))))
    found: list[Multilinear] = []
    for which in range(len(corners[0])):
        # Python's integers: they cannot overflow.
        table = np.array([corner[which] for corner in corners], dtype=object).reshape((2,) * len(free))
        for position, axis in enumerate(free):
            at_low, next_one = np.moveaxis(table, position, 0)
            slope = next_one - at_low
            table = np.moveaxis(np.stack([at_low - lows[axis] * slope, slope]), 0, position)
        terms = [
            (tuple(axis for axis, power in zip(free, powers, strict=True) if power), int(table[powers]))
            for powers in itertools.product((0, 1), repeat=len(free))
            if table[powers] != 0
        ]
        found.append(Multilinear(tuple(sorted(terms, key=lambda term: (len(term[0]), term[0])))))
    return found
