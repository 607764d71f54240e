"""Interpolation of the losses of a layer's candidates, of which only some are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankfold.records import Candidate

WORST = 1e6
"""Loss of outputs that overflow or are infinite where the original's are not: that of outputs a thousand times too
large."""
_SMALLEST = 1e-9
_EXACT = 0.02
"""Relative error of a layer below which the network is linear in the change."""


def representatives(row: Sequence[Candidate], points: int) -> list[int]:
    """Return the candidates of a layer to measure: some of each method, evenly spaced in the logarithm of the error.

    They are on the front of parameters and error: no cheaper candidate of the same method has a smaller error.
    """
    chosen: list[int] = []
    for method in dict.fromkeys(candidate.method for candidate in row):
        front: list[int] = []
        for index in sorted(
            (i for i, c in enumerate(row) if c.method == method), key=lambda i: (row[i].cost.params, row[i].error, i)
        ):
            if not front or row[index].error < row[front[-1]].error:
                front.append(index)
        errors = np.log([max(row[i].error, _SMALLEST) for i in front])
        wanted = np.linspace(errors[0], errors[-1], points)
        chosen += sorted({front[int(np.abs(errors - w).argmin())] for w in wanted})
    return chosen


def anchors(row: Sequence[Candidate], count: int) -> list[int]:
    """Return the candidates of a layer, of any method, that correct estimated losses by measured ones.

    They are on the front of parameters and error, and evenly spaced in the logarithm of the error from the largest
    error downwards, above `_EXACT`, where estimates to second order are exact.
    """
    front: list[int] = []
    for index in sorted(range(len(row)), key=lambda i: (row[i].cost.params, row[i].error, i)):
        if not front or row[index].error < row[front[-1]].error:
            front.append(index)
    errors = np.log([max(row[i].error, _SMALLEST) for i in front])
    least = min(max(errors[-1], np.log(_EXACT)), errors[0])
    wanted = np.linspace(errors[0], least, count + 1)[:-1]
    return sorted({front[int(np.abs(errors - w).argmin())] for w in wanted})


def corrected(row: Sequence[Candidate], losses: Sequence[float], measured: Mapping[int, float]) -> list[float]:
    """Return the losses of a layer's candidates, multiplied by the ratio of measured and estimated loss at some.

    The ratio depends on the size of the change, not on the method. Between two measured errors, its logarithm is linear
    in the logarithm of the error; outside of their range it is constant. Candidates without a loss have no ratio.
    """
    known = sorted(
        (max(row[i].error, _SMALLEST), np.log(value / losses[i]))
        for i, value in measured.items()
        if value > 0 and losses[i] > 0
    )
    if not known:
        return list(losses)
    errors, ratios = np.log([error for error, _ in known]), [ratio for _, ratio in known]
    return [
        min(loss * float(np.exp(np.interp(np.log(max(c.error, _SMALLEST)), errors, ratios))), WORST)
        for c, loss in zip(row, losses, strict=True)
    ]


def read_off(row: Sequence[Candidate], measured: Mapping[int, float]) -> tuple[float, ...]:
    """Return the loss of every candidate of a layer, given the losses of some.

    Between two measured candidates of a method, the loss is a power of the predicted error; outside of their range, it
    is proportional to the square of the error, as for small errors. Measured losses are not changed, except that the
    loss never decreases with the error.
    """
    losses = [0.0] * len(row)
    for method in dict.fromkeys(candidate.method for candidate in row):
        members = [i for i, candidate in enumerate(row) if candidate.method == method]
        points = sorted((max(row[i].error, _SMALLEST), measured[i]) for i in members if i in measured)
        errors = np.log([error for error, _ in points])
        values = np.log(np.maximum(np.maximum.accumulate([value for _, value in points]), _SMALLEST**2))
        for i in members:
            if row[i].error <= 0:
                continue
            at = np.log(max(row[i].error, _SMALLEST))
            beyond = min(at - errors[0], 0.0) + max(at - errors[-1], 0.0)
            losses[i] = float(np.exp(np.interp(at, errors, values) + 2 * beyond))
    return tuple(losses)
