"""Distribution of the valid rank settings over the plane of parameters and MACs."""

from __future__ import annotations

import numpy as np

from rankfold.cost.exploration.polynomial import Ints
from rankfold.cost.exploration.record import Histogram
from rankfold.cost.exploration.rows import Rows, reach
from rankfold.records import Cost

BLOCK = 2**14
"""Number of rows processed at once; each has up to ``2 * bins`` segments."""


class Plane:
    """An exact two-dimensional histogram, accumulated row by row.

    Along a row, both costs are affine in the solved rank, so the edges of the bins divide its interval into segments,
    each in one bin, which are counted without visiting the settings.
    """

    def __init__(self, bins: int, dense: Cost) -> None:
        self._bins = bins
        # Edge j, ascending, is the least cost whose reduction is at most (bins - j) / bins: a ceiling division.
        totals = (dense.params, dense.macs)
        self._edges = [np.array([-(-total * j // bins) for j in range(bins + 1)], np.int64) for total in totals]
        self._counts = np.zeros(bins * bins, np.int64)

    def see(self, rows: Rows) -> None:
        """Add a chunk of rows."""
        for start in range(0, len(rows), BLOCK):
            self._see(rows.take(np.arange(start, min(start + BLOCK, len(rows)))))

    @property
    def histogram(self) -> Histogram:
        """The counts so far."""
        table = self._counts.reshape(self._bins, self._bins)
        return Histogram(bins=self._bins, counts=tuple(tuple(int(n) for n in line) for line in table))

    def _see(self, rows: Rows) -> None:
        before = (rows.first - 1)[:, None]
        cuts = [before, rows.last[:, None]]
        for edges, constant, slope in zip(
            self._edges, (rows.params0, rows.macs0), (rows.params1, rows.macs1), strict=True
        ):
            cuts += [reach(int(edge) - 1, constant, slope, rows.last)[:, None] for edge in edges[1:-1]]
        ends = np.sort(np.maximum(np.concatenate(cuts, axis=1), before), axis=1)
        lengths = np.diff(ends, axis=1)
        row, segment = np.nonzero(lengths)
        x = ends[row, segment] + 1
        across = self._bin(0, rows.params0[row] + rows.params1[row] * x)
        up = self._bin(1, rows.macs0[row] + rows.macs1[row] * x)
        # The weighted sums of bincount are exact below 2**53.
        weights = lengths[row, segment].astype(np.float64)
        counted = np.bincount(across * self._bins + up, weights=weights, minlength=self._bins**2)
        self._counts += counted.astype(np.int64)

    def _bin(self, which: int, cost: Ints) -> Ints:
        return self._bins - np.searchsorted(self._edges[which], cost, side="right")
