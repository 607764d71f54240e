"""Two ways to the same factors, timed side by side.

What the timer holds is `Contender.run`: from the weight in torch's layout to the factors as tensors. Building the
weight, composing the factors again and measuring their error are outside.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankfold import methods
from rankfold.methods import Method
from rankfold.records import Choice, LayerInfo, Ranks
from rankfold.surgery import build


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to factor a weight.

    Parameters
    ----------
    name : str
        Who runs it.
    run : callable
        Takes nothing, returns factors; this is what is timed.
    dense : callable
        Takes what `run` returned, returns the approximated weight in torch's layout.
    """

    name: str
    run: Callable[[], Any]
    dense: Callable[[Any], Tensor]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was measured of one contender: seconds of every run, and the relative error of the last."""

    name: str
    error: float = float("nan")
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def race(
    contenders: Sequence[Contender],
    weight: Tensor,
    *,
    runs: int = 7,
    budget: float = 10.0,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Outcome]:
    """Run contenders in turn: A B A B ..., so that all of them meet the same machine.

    Parameters
    ----------
    contenders : sequence of Contender
        Who runs.
    weight : Tensor
        The weight that is approximated.
    runs : int
        Timed rounds; of fast contenders more, up to 1,000, until they have run for 0.3 s: a shared machine's
        speed changes within tens of milliseconds.
    budget : float
        No further round begins after these seconds; one round always runs. The number of runs is the length of
        `Outcome.seconds`.
    warm : bool
        Whether to run each once before, untimed (libraries start threads and choose algorithms then).
    clock : callable
        Returns seconds; `time.process_time` on a machine that is shared, with one thread.
    """
    outcomes = [Outcome(name=contender.name) for contender in contenders]
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for round_ in range(-1 if warm else 0, 1000 if runs > 1 else runs):
            spent = time.perf_counter() - start
            if round_ > 0 and (spent > budget or (round_ >= runs and spent > 0.3)):
                break
            for contender, outcome in zip(contenders, outcomes, strict=True):
                before = clock()
                found = contender.run()
                seconds = clock() - before
                if round_ >= 0:
                    outcome.seconds.append(seconds)
                if round_ in (-1, 0):
                    outcome.error = relative_error(contender.dense(found), weight)
    finally:
        if enabled:
            gc.enable()
    return outcomes


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """Return the relative Frobenius error, in float64."""
    exact = weight.double()
    return float((approximation.double().reshape(exact.shape) - exact).norm() / exact.norm())


def ours(method: Method, layer: LayerInfo, weight: Tensor, ranks: Ranks) -> Contender:
    """Return rankfold's public door: `prepare` (every check included), then `factorize`."""

    def dense(factors: tuple[Tensor, ...]) -> Tensor:
        doubles = tuple(factor.double() for factor in factors)
        choice = Choice(method=method.name, ranks=ranks)
        module = build(
            method.blueprint(layer, ranks), layer, choice,
            dtype=torch.float64, device=weight.device, factors=doubles, bias=None,
        )  # fmt: skip
        return module.weight.detach()

    return Contender(name="rankfold", run=lambda: methods.prepare(method, weight, layer).factorize(ranks), dense=dense)
