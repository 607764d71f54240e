"""The latency of models, which are timed alternately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rankfold._config import require
from rankfold._progress import track
from rankfold._tensors import clock, copied, detached, model_device, to_device
from rankfold._turns import in_turn
from rankfold.batches import call_model
from rankfold.errors import RankfoldError
from rankfold.inventory import evaluating, example_failure

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyResult:
    """Time per forward pass.

    Parameters
    ----------
    median_ms, iqr_ms : float
        Median and interquartile range of the runs, in milliseconds.
    runs_ms : tuple of float
        Every run, in order, in milliseconds.
    """

    median_ms: float
    iqr_ms: float
    runs_ms: tuple[float, ...]

    @classmethod
    def of(cls, runs_ms: tuple[float, ...]) -> LatencyResult:
        """Return the summary of some runs."""
        low, median, high = np.percentile(runs_ms, [25, 50, 75])
        return cls(median_ms=float(median), iqr_ms=float(high - low), runs_ms=runs_ms)


@in_turn
def latency(
    model: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 5, threads: int | None = None
) -> LatencyResult:
    """Return the time per forward pass of one model; see `compare_latency`."""
    models = {"model": model}
    return compare_latency(models, example_input, repeats=repeats, warmup=warmup, threads=threads)["model"]


@in_turn
def compare_latency(
    models: Mapping[str, nn.Module],
    example_input: Any,
    *,
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> dict[str, LatencyResult]:
    """Return the time per forward pass of several models, which are timed alternately.

    In each round, every model runs once, in rotating order, so that a temporary slowdown of the machine affects all of
    them. Only the forward pass is timed, in evaluation mode and without gradients; the device is synchronized before
    and after it.

    Parameters
    ----------
    models : mapping of str to Module
        The models by name, each on its device.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    repeats : int
        Number of measured rounds.
    warmup : int
        Number of rounds before them.
    threads : int or None
        Number of intra-op CPU threads while measuring; None leaves it unchanged.

    Raises
    ------
    ConfigError
        If a number is out of range or there is no model.
    ModelError
        If a model fails on the example input.
    """
    require(len(models) > 0, "models", list(models), "a mapping with at least one model")
    require(repeats >= 1, "repeats", repeats, "at least 1")
    require(warmup >= 0, "warmup", warmup, "at least 0")
    require(threads is None or threads >= 1, "threads", threads, "at least 1, or None")
    names = list(models)
    runs: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
        resets = {name: stack.enter_context(evaluating(model)) for name, model in models.items()}
        inputs = {name: copied(detached(to_device(example_input, model_device(models[name])))) for name in names}
        for i in track(range(warmup + repeats), "measuring latency"):
            for name in rotated(names, i):
                try:
                    elapsed = time_call(models[name], inputs[name]) * 1e3
                except RankfoldError:
                    raise
                except Exception as error:
                    raise example_failure(f"model {name!r}", example_input, error) from error
                resets[name]()
                if i >= warmup:
                    runs[name].append(elapsed)
    return {name: LatencyResult.of(tuple(values)) for name, values in runs.items()}


def rotated(names: Sequence[K], number: int) -> list[K]:
    """Return names in their order in a round, so that over the rounds each comes first equally often."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def time_call(model: nn.Module, inputs: Any) -> float:
    """Return the seconds of one forward pass; the model's device is synchronized before and after it."""
    device = model_device(model)
    start = clock(device)
    call_model(model, inputs)
    return clock(device) - start
