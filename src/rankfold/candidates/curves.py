"""A proxy that costs a run of the network is measured at some candidates of a layer and read off between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankfold.records import Candidate

_SMALLEST = 1e-9


def representatives(row: Sequence[Candidate], points: int) -> list[int]:
    """Return which candidates of a layer to measure: some of each method, evenly spaced in the error's logarithm.

    Only those on the front of parameters and error come into question: nothing cheaper of the same method errs less.
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


def read_off(row: Sequence[Candidate], measured: Mapping[int, float]) -> tuple[float, ...]:
    """Return the loss of every candidate of a layer from that of some.

    Between two measured candidates of a method the loss is a power of the predicted error; beyond the last one it
    falls or grows with its square, as it must for small errors. A measured loss is used as it is, except for dips:
    more error never counts as less loss.
    """
    losses = [0.0] * len(row)
    for method in dict.fromkeys(candidate.method for candidate in row):
        members = [i for i, candidate in enumerate(row) if candidate.method == method]
        known = sorted((max(row[i].error, _SMALLEST), measured[i]) for i in members if i in measured)
        errors = np.log([error for error, _ in known])
        values = np.log(np.maximum(np.maximum.accumulate([value for _, value in known]), _SMALLEST**2))
        for i in members:
            if row[i].error <= 0:
                continue
            at = np.log(max(row[i].error, _SMALLEST))
            beyond = min(at - errors[0], 0.0) + max(at - errors[-1], 0.0)
            losses[i] = float(np.exp(np.interp(at, errors, values) + 2 * beyond))
    return tuple(losses)
