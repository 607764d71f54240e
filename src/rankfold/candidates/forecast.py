"""The time that a search takes, estimated from timed passes, and the options that keep within a limit.

The number of passes that a proxy takes over the samples follows from its options and the layers, and is the same on
every machine. A few forward passes and a backward pass are timed. What does not run the network is counted in
operations at the network's rate, or has fixed times, measured on two cores of a CPU.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import nn

from rankfold._processes import slowest
from rankfold._progress import duration
from rankfold._tensors import clock, model_device, to_device
from rankfold.batches import batch_size, iterate, leading, split_batch
from rankfold.candidates.fisher import FisherProxy, draws_each, draws_for, groups, piece_size
from rankfold.candidates.proxies import COMPARED, DATA_FREE, MOST_SAMPLES, POINTS, ProxyConfig
from rankfold.errors import ModelError
from rankfold.inventory import Spare, run_batch, undisturbed
from rankfold.methods import Method
from rankfold.records import Inventory, LayerInfo

ENOUGH, SPARED = 128, 0.5
"""A search takes more samples than `ENOUGH` only within this share of the limit: they rarely improve the plan."""
GRID = ((MOST_SAMPLES, POINTS), (ENOUGH, POINTS), (64, POINTS), (32, POINTS), (16, POINTS), (16, POINTS // 2))
"""Samples and points that a search with a given proxy chooses from, the best first."""
AUTO = (
    *(("fisher+network", *pair) for pair in GRID[:3]),
    *(("fisher", *pair) for pair in GRID[:3]),
    ("fisher", 16, POINTS // 2),
)
"""Proxy, samples and points that "auto" chooses from, the best first: many samples are worth more than measurements."""
FEWEST = 4
"""The fewest samples of second moments that a search chooses."""
TIMED_BATCHES = 4
"""Batches that are timed: texts, for example, have different lengths."""
TIMING_S = 1.0
"""Seconds after which no further batch is timed; a quarter of them is spent on one."""
BACKWARD = 0.8
"""Share of the backward pass in the time of a gradient."""
REPLAY = 0.1
"""Time of a measurement in forward passes, in addition to the part of the network from its layer on."""
PRICED_S = 0.015
"""Seconds to list and price the candidates of a layer by one method."""
VECTORS = 0.7
"""Time of the factors of a layer's candidates, apart from their products, relative to that of the errors and prices."""
COMPOSED_S = 3.5e-8
"""Seconds per parameter of the layer to compute the weight of a candidate from its decomposition."""
DECOMPOSED, DECOMPOSED_KERNEL = 20.0, 250.0
"""Multiply-accumulates per ``n^3`` in the decompositions of a matrix whose shorter side is n, at the network's rate; of
a layer with a kernel, whose methods decompose several matrices."""
UNFOLDED = 2.0
"""Multiply-accumulates per parameter and channel in the Gram matrices of a layer with a kernel, at the network's rate;
they are computed in float64."""
WEIGHTS_ONLY = 0.5
"""Time to price candidates by the errors of the weights, relative to those of the outputs."""
GRAM = 1.0
"""Time of a Gram matrix relative to its multiply-accumulates at the network's rate; it is added up in float64."""
MOMENTS = 0.25
"""Share of the limit that the second moments may take, if those of all samples exceed it."""
MOST_PATCH, MOST_POSITIONS = 2304, 1024
"""The defaults of `rankfold.calibration.collect_moments`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Options of a proxy, the proxies whose plans are compared with its plan, and the seconds of a search with them.

    `moment_samples` is None for all samples.
    """

    proxy: str
    samples: int
    points: int
    moment_samples: int | None
    rivals: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        moments = (
            "" if self.moment_samples is None else f", second moments of the first {self.moment_samples:,} samples"
        )
        samples = "" if self.proxy in DATA_FREE else f", {self.samples} samples"
        return f"about {duration(self.seconds)} with proxy {self.proxy}{moments}{samples}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a search computes with on one model and machine.

    Parameters
    ----------
    sample_s : float
        Seconds of the network's forward pass per sample.
    few_s : float
        The same if there are only two samples in a batch.
    gradient_s : float or None
        Seconds of a forward and a backward pass of one sample; None if the outputs cannot be differentiated, or no
        proxy needs it.
    after : tuple of float
        For each layer, the share of the network's multiply-accumulates from this layer on.
    params : tuple of int
        For each layer, the parameters of its weight.
    priced_s : float
        Seconds of the errors and prices of the candidates.
    decomposed_s : float
        Seconds of the decompositions of all layers, each by one method.
    moments_s : float
        Seconds of the second moments per sample; 0 if none are collected.
    samples : int or None
        Calibration samples; None if the data has no length.
    methods : tuple of int
        For each layer, the number of factorizations that support it.
    spent_s : float
        Seconds that the forecast itself took.
    """

    sample_s: float
    few_s: float
    gradient_s: float | None
    after: tuple[float, ...]
    params: tuple[int, ...]
    priced_s: float
    decomposed_s: float
    moments_s: float
    samples: int | None
    methods: tuple[int, ...]
    spent_s: float = 0.0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inventory: Inventory,
        batches: Iterable[Any],
        methods: Sequence[Method],
        *,
        moments: bool,
        gradients: bool = True,
        limit: float | None = None,
        spare: Spare | None = None,
    ) -> Forecast:
        """Time some passes and return the forecast; several processes take the slowest one's time.

        Parameters
        ----------
        model : Module
            The original.
        inventory : Inventory
            Its layers.
        batches : iterable
            Calibration data.
        methods : sequence of Method
            The factorizations.
        moments : bool
            Whether second moments are collected.
        gradients : bool
            Whether a backward pass is timed, for the proxies from gradients.
        limit : float or None
            Seconds of the search. If they are too few for any proxy from gradients, the time of a backward pass is
            estimated.
        spare : Spare, optional
            A copy of the model to work on.
        """
        start = time.perf_counter()
        layers = [layer for layer in inventory if layer.skip is None]
        example, timed = _timed(model, batches)
        few_s, sample_s = map(slowest, timed)
        after = shares_after(inventory)
        per_sample = max(inventory.total.macs, 1) / max(inventory.batch, 1)
        fitting = tuple(sum(method.supports(layer) is None for method in methods) for layer in layers)
        decompositions = [_decomposition_macs(layer) * sample_s / per_sample for layer in layers]
        decomposed_s = sum(n * seconds for n, seconds in zip(fitting, decompositions, strict=True))
        moments_s = 0.0
        if moments:
            sums = sum(
                _gram_macs(layer, inventory.costs[layer.name].macs / max(inventory.batch, 1)) for layer in layers
            )
            moments_s = sample_s * (1 + sums / per_sample)
        count = length_hint(batches, 0) * batch_size(example) or None
        params = tuple(math.prod(layer.weight_shape) for layer in layers)
        found = cls(
            sample_s=sample_s, few_s=few_s, gradient_s=2 * few_s,  # a backward pass takes no less than a forward pass
            after=tuple(after.values()), params=params, priced_s=PRICED_S * sum(fitting) + decomposed_s,
            decomposed_s=sum(decompositions), moments_s=moments_s, samples=count, methods=fitting,
        )  # fmt: skip
        gradient_s = math.inf
        if gradients and limit is not None and found.setting("fisher", *GRID[-1], FEWEST).seconds > limit:
            gradient_s = few_s / (1 - BACKWARD)
        elif gradients:
            gradient_s = slowest(_gradient_seconds(model, example, layers, spare))
        return replace(
            found,
            gradient_s=gradient_s if math.isfinite(gradient_s) else None,
            spent_s=slowest(time.perf_counter() - start),
        )

    def setting(
        self,
        proxy: str,
        samples: int,
        points: int,
        moment_samples: int | None = None,
        rivals: Collection[str] = (),
    ) -> Setting:
        """Return the options with the seconds of a search, from second moments to the comparison with other plans."""
        present = min(samples, self.samples or samples)
        read = min(moment_samples or math.inf, self.samples or math.inf)
        moments_s = self.moments_s * (read if read < math.inf else FEWEST)  # data without a length counts as one batch
        seconds = self.spent_s + moments_s + self.priced_s
        if proxy not in DATA_FREE:
            seconds += VECTORS * self.priced_s
        if proxy.startswith("fisher"):
            seconds += self._of_gradients(present, points)
        if proxy.endswith("network"):
            seconds += self._of_measurements(present, points, several=proxy == "network")
        if rivals:
            seconds += self._of_comparison(min(COMPARED, present), 1 + len(rivals), again=moment_samples is None)
        if "weight" in rivals:
            seconds += WEIGHTS_ONLY * self.priced_s
        return Setting(
            proxy=proxy, samples=samples, points=points, moment_samples=moment_samples, rivals=tuple(rivals),
            seconds=seconds,
        )  # fmt: skip

    def _of_gradients(self, samples: int, points: int) -> float:
        """Return the seconds of the proxy from gradients."""
        draws = draws_for(samples)
        size = piece_size(samples, draws)
        pieces = -(-samples // size)
        each = draws_each(pieces, draws)
        passes = len(groups([each * pieces * 4 * numel for numel in self.params]))
        gradient_s = 3 * self.few_s if self.gradient_s is None else self.gradient_s
        gradient_s *= 1 + (size - 1) * self.sample_s / self.few_s
        # Every group takes a forward pass, and half of a backward pass on average: it ends at the group's first layer.
        # The gradients of the weights, which are the other half, are computed once.
        piece_s = gradient_s * ((1 - BACKWARD) * passes + each * BACKWARD * (0.5 + 0.25 * (passes + 1)))
        composed = sum(points * number * numel for number, numel in zip(self.methods, self.params, strict=True))
        return pieces * piece_s + samples * self.sample_s + COMPOSED_S * composed

    def _of_measurements(self, samples: int, points: int, *, several: bool) -> float:
        """Return the seconds of measured candidates: some per method, or half as many of any method."""
        passes, composed = 0.0, 0
        for share, number, numel in zip(self.after, self.methods, self.params, strict=True):
            measured = points * number if several else points // 2
            passes += passes_of(measured, share)
            composed += measured * numel
        return passes * samples * self.sample_s + COMPOSED_S * composed

    def _of_comparison(self, samples: int, plans: int, *, again: bool) -> float:
        """Return the seconds of the comparison of plans.

        One run computes the original's outputs. With `again`, another one computes second moments to subtract.
        """
        runs_s = (plans + 1) * self.sample_s + (self.moments_s if again else 0.0)
        return samples * runs_s + plans * (self.decomposed_s + COMPOSED_S * sum(self.params))

    def choose(
        self, config: ProxyConfig, limit: float | None, *, rivals: Collection[str] = (), fallback: str = "weight"
    ) -> tuple[Setting, Setting]:
        """Return the best setting within a limit in seconds, and the best of all; options that are set are kept.

        Second moments are taken from fewer samples before the proxy is made cheaper. More than `ENOUGH` samples of the
        proxy are only taken within the share `SPARED` of the limit. If no setting is within the limit, the cheapest is
        chosen.

        Parameters
        ----------
        config : ProxyConfig
            The options that are set.
        limit : float or None
            Seconds; None for no limit.
        rivals : collection of str
            Proxies whose plans are compared with that of the proxy.
        fallback : str
            A proxy without samples, for "auto" if no other one is within the limit; it competes with other such ones if
            the comparison is.
        """
        if config.proxy == "auto":
            differentiable = self.gradient_s is not None
            proxies = AUTO if differentiable else tuple(("network", *pair) for pair in GRID)
            others = [rival for rival in rivals if differentiable or rival != "fisher"]
            choices = [(*choice, [rival for rival in others if rival != choice[0]]) for choice in proxies]
            cheap = [rival for rival in rivals if rival in DATA_FREE and rival != fallback]
            choices += [(fallback, *GRID[-1], cheap), (fallback, *GRID[-1], [])]
        else:
            choices = [(config.proxy, *pair, list(rivals)) for pair in GRID]
        moments = self._moment_samples(config, limit)
        settings = [
            self.setting(name, config.samples or n, config.points or p, m, others)
            for name, n, p, others in choices
            for m in moments
        ]
        most_s = math.inf if limit is None else limit
        within = [setting for setting in settings if setting.seconds <= self._share(setting, config) * most_s]
        return within[0] if within else min(settings, key=lambda s: s.seconds), settings[0]

    def _share(self, setting: Setting, config: ProxyConfig) -> float:
        """Return the share of the limit that a setting may take."""
        present = min(setting.samples, self.samples or setting.samples)
        spared = setting.proxy not in DATA_FREE and config.samples is None and present > ENOUGH
        return SPARED if spared else 1.0

    def _moment_samples(self, config: ProxyConfig, limit: float | None) -> tuple[int | None, ...]:
        """Return the samples of second moments to choose from, the best first: all of them, or a power of two."""
        if config.moment_samples is not None or limit is None or self.moments_s <= 0:
            return (config.moment_samples,)
        most = max(FEWEST, MOMENTS * limit / self.moments_s)
        fewer = 2 ** math.floor(math.log2(most))
        if self.samples is None:  # all of them may take any time
            return (fewer,)
        return (None,) if fewer >= self.samples else (None, fewer)


def shares_after(inventory: Inventory) -> dict[str, float]:
    """Return the share of the network's multiply-accumulates from each layer on, by the layer's name."""
    total, before, shares = max(inventory.total.macs, 1), 0, dict[str, float]()
    for layer in inventory:
        if layer.skip is None:
            shares[layer.name] = 1 - before / total
            before += inventory.costs[layer.name].macs
    return shares


def passes_of(candidates: int, share: float) -> float:
    """Return the time of the measured candidates of a layer in forward passes per sample.

    `share` is that of the network from the layer on, which runs for every candidate.
    """
    return 1 + candidates * (share + REPLAY)


def _timed(model: nn.Module, batches: Iterable[Any]) -> tuple[Any, tuple[float, float]]:
    """Return the inputs of the first batch, and the mean seconds of a forward pass per sample over a few batches.

    The latter are those with two samples in a batch, and with as many as a short time allows.
    """
    example, start = getattr(batches, "example", None), time.perf_counter()
    firsts, seconds = list[Any](), list[tuple[float, float]]()
    with torch.random.fork_rng(devices=[]):  # a loader draws from torch's generator even without shuffling
        for number, batch in enumerate(itertools.islice(iterate(batches, "calibration"), TIMED_BATCHES), 1):
            inputs = split_batch(batch)[0]
            firsts = firsts or [inputs]
            timed = partial(time_pass, model, inputs, what=f"calibration batch {number}", example=example)
            few_s = sample_s = timed(samples=2)
            samples = int(TIMING_S / 4 / few_s)
            if samples > 2:  # a few samples at a time take longer than the whole batch
                sample_s = timed(samples=samples)
            seconds.append((few_s, sample_s))
            if time.perf_counter() - start > TIMING_S:
                break
    few, many = zip(*seconds, strict=True)
    return firsts[0], (statistics.fmean(few), statistics.fmean(many))


def _gradient_seconds(model: nn.Module, inputs: Any, layers: Sequence[LayerInfo], spare: Spare | None) -> float:
    """Time a forward and a backward pass on one sample. The result is infinite if the outputs have no gradient."""
    for part in (leading(inputs, 1), inputs):  # the outputs of one sample may all be zero
        proxy = FisherProxy(model, [(part, None)], layers, draws=1, spare=spare)
        with suppress(ModelError):
            proxy.run()  # the first may compile
            start = clock(model_device(model))
            proxy.run()
            return (clock(model_device(model)) - start) / max(batch_size(part), 1)
    return math.inf


def time_pass(model: nn.Module, inputs: Any, *, samples: int, what: str, example: Any = None) -> float:
    """Return the seconds of a forward pass per sample: of the faster of two, because the first may compile.

    Up to `samples` samples are timed. A model that fails on them is run on the whole batch, so that the error describes
    it; `what` is its name.
    """
    seconds, device = list[float](), model_device(model)
    part = to_device(leading(inputs, samples), device)
    for _ in range(2):
        with undisturbed(model):
            start = clock(device)
            try:
                run_batch(model, part, what, example=example)
            except ModelError:
                run_batch(model, to_device(inputs, device), what, example=example)
                raise
            seconds.append(clock(device) - start)
    return max(min(seconds), 1e-6) / max(batch_size(part), 1)


def _decomposition_macs(layer: LayerInfo) -> float:
    """Return the multiply-accumulates of a layer's decompositions by one method."""
    short = min(layer.group_out, layer.group_in * layer.kernel_numel)
    if layer.kernel_numel == 1:
        return DECOMPOSED * layer.groups * short**3
    unfolded = UNFOLDED * math.prod(layer.weight_shape) * max(layer.group_in, layer.group_out)
    return DECOMPOSED_KERNEL * layer.groups * short**3 + unfolded


def _gram_macs(layer: LayerInfo, macs: float) -> float:
    """Return the multiply-accumulates of a layer's second moments per sample, given its own."""
    positions = min(macs / math.prod(layer.weight_shape), MOST_POSITIONS)
    sizes = {layer.group_in}
    if layer.kernel_numel > 1 and layer.group_in * layer.kernel_numel <= MOST_PATCH and not layer.transposed:
        sizes.add(layer.group_in * layer.kernel_numel)
    return GRAM * positions * layer.groups * sum(n * n for n in sizes)
