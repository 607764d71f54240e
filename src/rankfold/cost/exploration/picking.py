"""Selection of the solutions of one compression step in a pass over the rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from rankfold.cost.exploration.polynomial import Ints
from rankfold.cost.exploration.rows import Rows

Place = tuple[int, int, int]
"""One rank setting: piece, row index in the piece, value of the solved rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A compression step in integers: ``least <= params <= most``, ideally ``params == aim``."""

    reduction: float
    least: int
    most: int
    aim: int

    @classmethod
    def of(cls, reduction: float, tolerance: float, params: int) -> Target:
        """Return the step ``reduction - tolerance <= 1 - P / params < reduction + tolerance``, exactly."""
        share, width = Fraction(str(reduction)), Fraction(str(tolerance))
        # P > params (1 - share - width) and P <= params (1 - share + width)
        least = int(params * (1 - share - width) // 1) + 1
        most = int(params * (1 - share + width) // 1)
        return cls(reduction=reduction, least=least, most=most, aim=round(params * (1 - share)))


class Picker:
    """Counts the solutions of one step, and selects fewest MACs, most MACs and equal ranks."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.counts: list[int] = []
        self._fewest: tuple[int, Place] | None = None
        self._most: tuple[int, Place] | None = None
        self._equal: tuple[tuple[int, int], Place] | None = None

    @property
    def count(self) -> int:
        """Number of solutions so far."""
        return sum(self.counts)

    @property
    def places(self) -> list[Place | None]:
        """Fewest MACs, most MACs, equal ranks."""
        return [None if kept is None else kept[1] for kept in (self._fewest, self._most, self._equal)]

    def see(self, rows: Rows) -> None:
        """Add a chunk of rows."""
        first, last = rows.interval(self.target.least, self.target.most)
        where = np.flatnonzero(last >= first)
        first, last = first[where], last[where]
        self.counts.append(int((last - first + 1).sum()))
        if not len(where):
            return
        rows = rows.take(where)
        low, high = rows.macs0 + rows.macs1 * first, rows.macs0 + rows.macs1 * last
        at = int(low.argmin())
        if self._fewest is None or low[at] < self._fewest[0]:
            self._fewest = int(low[at]), _place(rows, at, first[at])
        at = int(high.argmax())
        if self._most is None or high[at] > self._most[0]:
            self._most = int(high[at]), _place(rows, at, last[at])
        self._see_equal(rows, first, last)

    def _see_equal(self, rows: Rows, first: Ints, last: Ints) -> None:
        nearest = np.clip(rows.smallest, first, last)
        spread = np.maximum(rows.largest, nearest) - np.minimum(rows.smallest, nearest)
        least = int(spread.min())
        if self._equal is not None and least > self._equal[0][0]:
            return
        where = np.flatnonzero(spread == least)
        rows, first, last = rows.take(where), first[where], last[where]
        first = np.maximum(first, rows.largest - least)
        last = np.minimum(last, rows.smallest + least)
        below = (self.target.aim - rows.params0) // np.maximum(rows.params1, 1)
        best: tuple[tuple[int, int], Place] | None = self._equal
        for x in (np.clip(below, first, last), np.clip(below + 1, first, last)):
            gap = np.abs(rows.params0 + rows.params1 * x - self.target.aim)
            at = int(gap.argmin())
            key = (least, int(gap[at]))
            if best is None or key < best[0]:
                best = key, _place(rows, at, x[at])
        self._equal = best


def draw(
    pickers: Sequence[Picker], chunks: Callable[[], Iterable[Rows]], number: int, seed: str
) -> list[tuple[Place, ...]]:
    """Draw `number` different solutions of each step, uniformly from those that are not selected already.

    The solutions of a step are numbered in the order of counting. The drawn numbers are looked up in a second pass over
    the rows.
    """
    drawn: list[list[int]] = []
    for picker in pickers:
        # Three more, because the selected solutions are removed after the draw.
        size = min(number + 3, picker.count) if number else 0
        generator = random.Random(f"{seed}/{picker.target.reduction}")
        drawn.append(generator.sample(range(picker.count), size))
    results: list[dict[int, Place]] = [{} for _ in pickers]
    if any(drawn):
        starts = [0] * len(pickers)
        for chunk, rows in enumerate(chunks()):
            for which, (picker, numbers, places) in enumerate(zip(pickers, drawn, results, strict=True)):
                start, count = starts[which], picker.counts[chunk]
                starts[which] += count
                inside = [n for n in numbers if start <= n < start + count]
                if inside:
                    places.update(_look_up(rows, picker.target, start, inside))
    return [
        tuple([places[n] for n in numbers if places[n] not in picker.places][:number])
        for picker, numbers, places in zip(pickers, drawn, results, strict=True)
    ]


def _look_up(rows: Rows, target: Target, start: int, numbers: Sequence[int]) -> dict[int, Place]:
    first, last = rows.interval(target.least, target.most)
    ends = start + np.cumsum(np.maximum(last - first + 1, 0))
    places: dict[int, Place] = {}
    for number in numbers:
        at = int(np.searchsorted(ends, number, side="right"))
        before_end = int(ends[at]) - number
        places[number] = _place(rows, at, last[at] - before_end + 1)
    return places


def _place(rows: Rows, at: int, x: np.int64) -> Place:
    return int(rows.piece[at]), int(rows.index[at]), int(x)
