"""All valid rank settings as rows, in each of which one rank has an interval and all other ranks are fixed.

Costs are affine in this rank, so its valid values, and those of any compression step, form an interval that can be
solved for. A layer with a hundred million settings has some hundred thousand rows, which are generated in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from rankfold.cost.exploration.pieces import Piece
from rankfold.cost.exploration.polynomial import Ints
from rankfold.records import Cost, Ranks

CHUNK = 2**17
"""Number of rows in a chunk: about 20 arrays of 1 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Arrays with one entry per row, where x is the solved rank and costs are ``params0 + params1 * x`` and so on."""

    piece: Ints
    index: Ints  # of the other ranks, in the piece
    params0: Ints
    params1: Ints
    macs0: Ints
    macs1: Ints
    fm0: Ints
    fm1: Ints
    first: Ints  # the valid values of x are first..last, at least one
    last: Ints
    smallest: Ints  # of the other ranks; above every rank if there are none
    largest: Ints  # below every rank if there are none

    def __len__(self) -> int:
        return len(self.piece)

    def take(self, where: Ints) -> Rows:
        """Return some of the rows."""
        return Rows(**{f.name: getattr(self, f.name)[where] for f in fields(self)})

    def interval(self, least: int, most: int) -> tuple[Ints, Ints]:
        """Return the first and last valid x with ``least <= params <= most``; first > last if there is none."""
        below = reach(least - 1, self.params0, self.params1, self.last)
        return np.maximum(self.first, below + 1), reach(most, self.params0, self.params1, self.last)


def reach(bound: int, constant: Ints, slope: Ints, highest: Ints) -> Ints:
    """Return the largest x of at most `highest` with ``constant + slope * x <= bound``, 0 or less if there is none."""
    room = bound - constant
    fixed = np.where(room >= 0, highest, 0)
    return np.minimum(np.where(slope == 0, fixed, room // np.maximum(slope, 1)), highest)


def valid_rows(pieces: Sequence[Piece], dense: Cost, chunk: int = CHUNK) -> Iterator[Rows]:
    """Yield the rows of all settings with fewer parameters and fewer MACs than the layer, in chunks of fixed order."""
    waiting: list[Rows] = []
    held = 0
    for number, piece in enumerate(pieces):
        axis = solved_axis(piece)
        points = math.prod(_shape(piece, axis))
        for start in range(0, points, chunk):
            part = _rows(number, piece, axis, start, min(start + chunk, points), dense)
            if not len(part):
                continue
            waiting.append(part)
            held += len(part)
            if held >= chunk:
                yield _joined(waiting)
                waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def solved_axis(piece: Piece) -> int:
    """Return the position of the rank with the most values, which leaves the fewest rows."""
    return int(np.argmax([high - low for low, high in zip(piece.lows, piece.highs, strict=True)]))


def ranks_of(piece: Piece, index: int, x: int) -> Ranks:
    """Return the rank setting of one row, given the solved rank."""
    axis = solved_axis(piece)
    offsets = np.unravel_index(index, _shape(piece, axis))
    return tuple(x if a == axis else piece.lows[a] + int(o) for a, o in enumerate(offsets))


def _shape(piece: Piece, axis: int) -> tuple[int, ...]:
    """Number of values of each rank, 1 for the solved one."""
    sizes = [high - low + 1 for low, high in zip(piece.lows, piece.highs, strict=True)]
    return tuple(1 if a == axis else size for a, size in enumerate(sizes))


def _rows(number: int, piece: Piece, axis: int, start: int, stop: int, dense: Cost) -> Rows:
    index = np.arange(start, stop, dtype=np.int64)
    offsets = np.unravel_index(index, _shape(piece, axis))
    ranks = [low + offset for low, offset in zip(piece.lows, offsets, strict=True)]
    params0, params1 = piece.params.along(axis, ranks)
    macs0, macs1 = piece.macs.along(axis, ranks)
    highest = np.full(len(index), piece.highs[axis], np.int64)
    last = reach(dense.params - 1, params0, params1, highest)
    last = reach(dense.macs - 1, macs0, macs1, last)
    first = np.full(len(index), piece.lows[axis], np.int64)
    for a, b, n in piece.bonds:
        if axis in (a, b):
            other = ranks[b if axis == a else a]
            first, last = np.maximum(first, -(-other // n)), np.minimum(last, n * other)
        else:
            last = np.where((ranks[a] <= n * ranks[b]) & (ranks[b] <= n * ranks[a]), last, 0)
    keep = np.flatnonzero(last >= first)
    others = [rank[keep] for a, rank in enumerate(ranks) if a != axis]
    fm0, fm1 = piece.fm.along(axis, [rank[keep] for rank in ranks])
    none = np.zeros(len(keep), np.int64)
    return Rows(
        piece=none + number, index=index[keep], params0=params0[keep], params1=params1[keep], macs0=macs0[keep],
        macs1=macs1[keep], fm0=fm0, fm1=fm1, first=first[keep], last=last[keep],
        smallest=np.minimum.reduce(others) if others else none + 2**40,
        largest=np.maximum.reduce(others) if others else none - 2**40,
    )  # fmt: skip


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Rows)})
