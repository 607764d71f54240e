"""Timing by turns: every run is compared with a reference in the same round."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rankfold.evaluation.latency import rotated
from rankfold.timing.contract import Run

K = TypeVar("K", bound=Hashable)

FEWEST, MOST = 5, 41
"""Rounds."""
WARMUP = 1
PRECISE = 0.02
"""Relative uncertainty of every median at which no further round is run."""
NOISY = 0.1
"""Relative uncertainty above which a time is not used."""
SECONDS = 20.0
"""Time after which no further round is run, once there are `FEWEST`."""
MODEL_SECONDS = 60.0
"""The same limit for whole models. Their times decide, and on a shared machine, rounds of seconds differ by 10 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A measured time.

    Parameters
    ----------
    ns : int
        Median in nanoseconds: that of the reference times the median ratio to the reference in the same round.
    ratio : float
        The median ratio.
    spread : float
        Relative standard error of the median ratio, or for the reference of its median; estimated from the
        interquartile range.
    """

    ns: int
    ratio: float
    spread: float

    @property
    def noisy(self) -> bool:
        """Whether the machine was too busy to tell the time."""
        return self.spread > NOISY


def alternately(
    runs: Mapping[K, Run],
    reference: K,
    *,
    reference_ns: int | None = None,
    limit_s: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[K, Reading]:
    """Return the time of every run; in each round, every run runs once, in rotating order.

    Rounds end when every median is known to `PRECISE`, after `MOST` rounds, or after `limit_s` seconds.

    Parameters
    ----------
    runs : mapping
        The runs by name.
    reference : hashable
        The name of the run that the others are compared with: a slowdown of the machine affects both.
    reference_ns : int or None
        The time of the reference if it was measured earlier.
    limit_s : float
        Time after which no further round is run.
    clock : callable
        Returns the time in seconds, for `limit_s`.
    """
    names = list(runs)
    seconds: dict[K, list[float]] = {name: [] for name in names}
    started = clock()
    for number in range(WARMUP + MOST):
        for name in rotated(names, number):
            elapsed = runs[name]()
            if number >= WARMUP:
                seconds[name].append(elapsed)
        if number + 1 >= WARMUP + FEWEST:
            readings = _readings(seconds, reference, reference_ns)
            if clock() - started > limit_s or all(reading.spread <= PRECISE for reading in readings.values()):
                return readings
    return _readings(seconds, reference, reference_ns)


def _readings(seconds: Mapping[K, list[float]], reference: K, reference_ns: int | None) -> dict[K, Reading]:
    base = np.array(seconds[reference])
    middle = float(np.median(base))
    whole = round(middle * 1e9) if reference_ns is None else reference_ns
    readings = {}
    for name, values in seconds.items():
        shares: NDArray[np.float64] = base / middle if name == reference else np.array(values) / base
        low, median, high = np.percentile(shares, [25, 50, 75])
        # The standard error of a median of normal values is 1.25 sigma / sqrt(n), and the range 1.35 sigma.
        spread = 0.93 * (high - low) / median / len(shares) ** 0.5
        ratio = 1.0 if name == reference else float(median)
        readings[name] = Reading(ns=max(round(ratio * whole), 1), ratio=ratio, spread=float(spread))
    return readings
