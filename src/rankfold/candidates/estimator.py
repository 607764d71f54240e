"""Estimation of the loss of candidates by a proxy."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold._config import is_number, spelled
from rankfold._hashing import module_hash, tensor_hash
from rankfold._printable import few
from rankfold._processes import merged, own_share
from rankfold._progress import say, track
from rankfold._version import __version__
from rankfold.batches import batch_size
from rankfold.calibration import collect_moments
from rankfold.candidates.cache import Cache
from rankfold.candidates.curves import anchors, corrected, read_off, representatives
from rankfold.candidates.fisher import FisherProxy, draws_for
from rankfold.candidates.forecast import passes_of, shares_after
from rankfold.candidates.narrow import NarrowPlan, normalizes_over, whole_weights
from rankfold.candidates.network import NetworkProxy, samples_between
from rankfold.candidates.outputs import check_taps, data_hash
from rankfold.candidates.proxies import COMPARED, DATA_FREE, MOST_SAMPLES, POINTS, ProxyConfig
from rankfold.errors import ConfigError, ModelError, RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.inventory import Spare, layer_weight
from rankfold.records import Candidate, CandidateTable, Inventory, Ranks
from rankfold.surgery.approximate import approximations

Measured = Literal["fisher", "network"]
"""What is computed from calibration samples, for one layer at a time."""
Key = tuple[str, Ranks]
"""A candidate of a layer: method and ranks."""
Selection = Mapping[str, Candidate | None]
"""A candidate for each of several layers; None keeps a layer."""

TELLING = 1e-3
"""If a candidate with at least this error has no loss, the samples do not depend on the layer."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is compared on which samples: `count` samples after the first `start`, outputs of `taps`."""

    start: int
    count: int
    taps: tuple[str, ...]

    @classmethod
    def of(cls, config: ProxyConfig) -> _Look:
        """Return what a proxy compares."""
        return cls(0, config.samples or MOST_SAMPLES, config.taps)


class Estimator:
    """Estimates the loss of candidates, additive over layers.

    Parameters
    ----------
    model : Module
        The original model; not modified.
    inventory : Inventory
        Its layers.
    table : callable
        Returns the candidate table; with `moments`, its errors are those of outputs.
    weight_table : callable
        Returns the same candidates with errors of weights.
    batches : iterable or None
        Calibration data, for the proxies that run the network.
    moments : mapping or None
        Second moments by layer name, for the computation of factors.
    cache : str, Path or None
        Folder for measurements.
    choice : (mapping, object), optional
        A key and a value that enter the cache with the first measurement: the options of the search.
    spare : Spare, optional
        A copy of the model to work on; it is restored after use.

    Attributes
    ----------
    measured : int
        Number of candidates measured so far by this process, without those from the cache.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        table: Callable[[], CandidateTable],
        *,
        weight_table: Callable[[], CandidateTable],
        batches: Iterable[Any] | None,
        moments: Mapping[str, Moments] | None,
        cache: str | Path | None = None,
        choice: tuple[Mapping[str, Any], Any] | None = None,
        spare: Spare | None = None,
    ) -> None:
        self.model = model
        self._spare = spare
        self.inventory = inventory
        self.table = table
        self.weight_table = weight_table
        self.batches = batches
        self.moments = moments
        self.cache = None if cache is None else Cache(cache)
        self._choice = choice
        self.measured = 0
        self._networks: dict[_Look, NetworkProxy] = {}
        self._fishers: dict[_Look, FisherProxy] = {}
        self._batches: dict[_Look, list[Any]] = {}
        self._data_hashes: dict[_Look, str | None] = {}
        self._unmeasured: dict[_Look, tuple[str, ...]] = {}
        self._moments_hashes: dict[str, str] = {}
        self._losses: dict[tuple[_Look, Measured, str, tuple[Key, ...]], list[float]] = {}
        self._gradientless: set[_Look] = set()  # "auto" has met a network without gradients

    def check(self, config: ProxyConfig, *, together: bool = False) -> None:
        """Raise `ConfigError` if a proxy lacks data, or cannot measure layers `together`, as `joint` does."""
        proxy = self.proxy(config)
        if proxy not in DATA_FREE and self.batches is None:
            raise ConfigError(
                f"{spelled('proxy', proxy)} needs calibration data. Pass {spelled('calibration', ...)}, or "
                f"{spelled('proxy', 'weight')}."
            )
        if together and self.batches is None:
            raise ConfigError(
                f"rounds need calibration data. Pass {spelled('calibration', ...)}, or {spelled('rounds', 0)}."
            )
        if together and proxy == "fisher":
            raise ConfigError(
                f"rounds need {spelled('proxy', 'network')}: gradients do not capture interactions between layers. "
                f"Otherwise, set {spelled('rounds', 0)}."
            )

    def proxy(self, config: ProxyConfig) -> str:
        """Return the configured proxy, with "auto" resolved."""
        if config.proxy == "auto":
            if self.batches is None:
                return "weight"
            return "network" if _Look.of(config) in self._gradientless else "fisher+network"
        return config.proxy

    def single(self, config: ProxyConfig) -> dict[str, dict[Key, float]]:
        """Return the loss of every candidate applied alone, by layer, method and ranks.

        If no candidate of a layer changes the compared outputs, however large its error, the layer is `unmeasured`. Its
        losses are then the squared errors on the scale of the most sensitive layer of the same shape, or of the median
        layer if no other layer has its shape.
        """
        if self.proxy(config) == "weight":
            rows = self.weight_table().rows
            return {name: {(c.method, c.ranks): c.error**2 for c in row} for name, row in rows.items()}
        rows, points = self.table().rows, config.points or POINTS
        chosen = {name: representatives(row, points) for name, row in rows.items()}
        values = self._representative_losses(rows, chosen, config)
        scales = self._scales(config, rows, values)
        measured = dict[str, dict[int, float]]()
        if self.proxy(config) == "fisher+network":
            spread = {name: anchors(row, points // 2) for name, row in rows.items() if name not in scales}
            measured = self._losses_of(rows, spread, config, "network")
        out: dict[str, dict[Key, float]] = {}
        for name, row in rows.items():
            scale = scales.get(name)
            losses = read_off(row, values[name]) if scale is None else [scale * c.error**2 for c in row]
            losses = corrected(row, losses, measured.get(name, {}))
            out[name] = {(c.method, c.ranks): loss for c, loss in zip(row, losses, strict=True)}
        return out

    def _representative_losses(
        self, rows: Mapping[str, Sequence[Candidate]], chosen: Mapping[str, Sequence[int]], config: ProxyConfig
    ) -> dict[str, dict[int, float]]:
        """Return the losses of the chosen candidates by gradients, or measured, by layer and position in its row."""
        if self.proxy(config) != "network":
            try:
                return self._losses_of(rows, chosen, config, "fisher")
            except ModelError as error:
                if config.proxy != "auto":
                    raise
                self._gradientless.add(_Look.of(config))
                say(f"every candidate is measured, which takes longer: {error}")
            finally:
                self._fishers.pop(_Look.of(config), None)  # frees the gradients: the losses are stored
        return self._losses_of(rows, chosen, config, "network")

    def _losses_of(
        self,
        rows: Mapping[str, Sequence[Candidate]],
        chosen: Mapping[str, Sequence[int]],
        config: ProxyConfig,
        proxy: Measured,
    ) -> dict[str, dict[int, float]]:
        """Return the losses of the chosen candidates; if one process cannot compute its share, all of them raise."""
        values, failures = dict[str, list[float]](), dict[str, str]()
        names, weights = own_share(list(chosen)), ()
        description = "estimating layers from gradients"
        if proxy == "network":
            description, weights = "measuring layers", self._expected(names, chosen)
        try:
            for name in track(names, description, weights=weights):
                values[name] = self._measure(name, [rows[name][i] for i in chosen[name]], _Look.of(config), proxy)
        except ModelError as error:
            failures["error"] = str(error)
        failures, values = merged(failures), merged(values)
        if failures:
            raise ModelError(failures["error"])
        return {name: dict(zip(chosen[name], values[name], strict=True)) for name in chosen}

    def _expected(self, names: Sequence[str], measured: Mapping[str, Sequence[Any]]) -> list[float]:
        """Return the expected times of measuring the candidates of layers, relative to each other."""
        shares = shares_after(self.inventory)
        return [passes_of(len(measured[name]), shares[name]) for name in names]

    def unmeasured(self, config: ProxyConfig) -> tuple[str, ...]:
        """Return the layers that `single` could not measure."""
        return self._unmeasured.get(_Look.of(config), ())

    @property
    def every_unmeasured(self) -> list[str]:
        """The layers that could not be measured, with any options so far."""
        return list(dict.fromkeys(name for names in self._unmeasured.values() for name in names))

    def _scales(
        self, config: ProxyConfig, rows: Mapping[str, Sequence[Candidate]], measured: Mapping[str, Mapping[int, float]]
    ) -> dict[str, float]:
        """Return the loss of a candidate with error 1, for each unmeasured layer."""
        unknown, ratios = [], dict[str, float]()
        for name, row in rows.items():
            squares = {i: row[i].error ** 2 for i in measured[name]}
            if max(squares.values(), default=0.0) < TELLING**2:
                continue  # every candidate is almost exact
            if any(measured[name].values()):
                ratios[name] = sum(measured[name].values()) / sum(squares.values())
            else:
                unknown.append(name)
        self._warn(_Look.of(config), unknown)
        shapes = {name: self.inventory.layer(name).describe() for name in rows}
        scales = {}
        for name in unknown:
            alike = [ratio for other, ratio in ratios.items() if shapes[other] == shapes[name]]
            scales[name] = max(alike) if alike else statistics.median(ratios.values()) if ratios else 1.0
        return scales

    def _warn(self, look: _Look, unknown: Sequence[str]) -> None:
        """Record the unmeasured layers and warn once, except about layers that no data reaches."""
        if look in self._unmeasured:
            return
        self._unmeasured[look] = tuple(unknown)
        reached = [name for name in unknown if self.moments is None or name in self.moments]
        if reached:
            warnings.warn(f"{unmeasured_text(reached)}.", RankfoldWarning, stacklevel=2)

    def _measure(self, name: str, candidates: Sequence[Candidate], look: _Look, proxy: Measured) -> list[float]:
        memo = (look, proxy, name, tuple((c.method, c.ranks) for c in candidates))
        if memo not in self._losses:  # the next budget needs the same losses
            key = self._key(name, candidates, look, proxy)
            losses = self._lookup(key, len(candidates))
            if losses is None:
                judge = self._fisher(look) if proxy == "fisher" else self._network(look)
                losses = self._run(judge, name, self._weights(name, candidates, self.moments), key)
            self._losses[memo] = losses
        return self._losses[memo]

    def _lookup(self, key: Mapping[str, Any] | None, count: int) -> list[float] | None:
        return None if self.cache is None or key is None else as_losses(self.cache.get(key), count)

    def _run(
        self,
        proxy: NetworkProxy | FisherProxy,
        name: str,
        weights: Sequence[Tensor],
        key: Mapping[str, Any] | None,
    ) -> list[float]:
        losses = proxy.losses(self.inventory.layer(name), weights)
        self.measured += len(losses)
        if self.cache is not None and key is not None:
            if self._choice is not None:
                self.cache.put(*self._choice)
                self._choice = None
            self.cache.put(key, losses)
        return losses

    def _weights(
        self, name: str, candidates: Sequence[Candidate | None], moments: Mapping[str, Moments] | None
    ) -> list[Tensor]:
        weight, layer = layer_weight(self.model, name), self.inventory.layer(name)
        factored = [candidate for candidate in candidates if candidate is not None]
        weights = approximations(weight, layer, factored, (moments or {}).get(name))
        return [weight if candidate is None else next(weights) for candidate in candidates]

    def joint(
        self, config: ProxyConfig, selection: Selection, neighbors: Mapping[str, Sequence[Candidate | None]]
    ) -> dict[str, list[float]]:
        """Return the loss of the network with a selection applied, and one layer's candidate replaced by a neighbor.

        None as a candidate keeps a layer. The result holds one loss per neighbor, on the samples of the proxy.
        """
        return self._together(_Look.of(config), selection, neighbors)

    def compare(self, config: ProxyConfig, selections: Mapping[str, Selection]) -> dict[str, float]:
        """Return the loss of the network with each of several selections applied, on samples that are held back.

        They are up to `COMPARED` samples after those of the proxy; if there are none, the first half of the samples. A
        network looks better on the samples that its factors are fitted to, most of all one with many factored layers.
        The second moments of the compared samples are therefore subtracted before the factors are computed.
        """
        look = self._held_back(config)
        names = {name for selection in selections.values() for name, c in selection.items() if c is not None}
        moments: Callable[[], Mapping[str, Moments]] | None = None
        if self._overlaps(config, look):
            moments = cache(partial(self._moments_without, look, names))
        losses = dict[str, float]()
        for key, selection in track(list(selections.items()), "comparing plans"):
            same = [losses[known] for known in losses if selections[known] == selection]
            first = next(iter(selection))
            neighbors = {first: [selection[first]]}
            losses[key] = same[0] if same else self._together(look, selection, neighbors, moments)[first][0]
        return losses

    def compare_narrow(self, config: ProxyConfig, plans: Mapping[str, NarrowPlan]) -> dict[str, float]:
        """Return the loss of the network of each of several plans that remove channels, as `compare` does.

        Empty if a normalization over channels loses some of them: such networks must be built to be measured.
        """
        if any(normalizes_over(self.model, plan.narrowing) for plan in plans.values()):
            return {}
        look = self._held_back(config)
        changed = {name for plan in plans.values() for name in (*plan.narrowing.removed(), *plan.chosen)}
        moments: Mapping[str, Moments] = self.moments or {}
        if self._overlaps(config, look):
            moments = self._moments_without(look, changed)
        network, losses = self._network(look), dict[str, float]()
        for key in track(own_share(list(plans)), "comparing plans"):
            weights = whole_weights(self.model, self.inventory, plans[key], moments)
            first = next(iter(weights), self.inventory.layers[0].name)  # a plan may change nothing
            try:
                for name, weight in weights.items():
                    network.replace(name, weight)
                replaced = weights.get(first, layer_weight(self.model, first))
                losses[key] = network.losses(self.inventory.layer(first), [replaced])[0]
            finally:
                for name in weights:
                    network.replace(name, layer_weight(self.model, name))
        return merged(losses)

    def _held_back(self, config: ProxyConfig) -> _Look:
        """Return what is compared for finished plans."""
        samples, read = config.samples or MOST_SAMPLES, config.moment_samples
        start = max(samples, read or 0)
        look = _Look(start, min(COMPARED, samples), config.taps)
        if self._samples(look):
            return look
        present = sum(batch_size(inputs) for inputs, _ in self._samples(_Look(0, start, config.taps)))
        half = min(present, read or present) // 2
        return _Look(0, max(1, min(COMPARED, samples, half)), config.taps)

    def _overlaps(self, config: ProxyConfig, look: _Look) -> bool:
        """Return whether the second moments contain compared samples."""
        return bool(self.moments) and look.start < (config.moment_samples or math.inf)

    def _moments_without(self, look: _Look, names: Collection[str]) -> dict[str, Moments]:
        """Return the second moments of some layers without those of the compared samples."""
        whole = {name: moments for name, moments in (self.moments or {}).items() if name in names}
        layers = [self.inventory.layer(name) for name in whole]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankfoldWarning)  # given when the second moments were collected
            part = collect_moments(self.model, self._samples(look), layers)
        # Taking the part's moments out one by one keeps two copies of the moments in memory, not three.
        rest = {name: moments.without(part.pop(name)) for name, moments in whole.items() if name in part}
        return {name: rest.get(name) or moments for name, moments in whole.items()}

    def _together(
        self,
        look: _Look,
        selection: Selection,
        neighbors: Mapping[str, Sequence[Candidate | None]],
        moments: Callable[[], Mapping[str, Moments]] | None = None,
    ) -> dict[str, list[float]]:
        """Return what `joint` returns; `moments` returns other second moments for the factors."""
        losses: dict[str, list[float]] = {}
        missing: dict[str, dict[str, Any] | None] = {}
        for name in own_share(list(neighbors)):
            key = self._key(name, neighbors[name], look, "network", selection)
            if key is not None and moments is not None:
                key["factors"] = "without the compared samples"
            stored = self._lookup(key, len(neighbors[name]))
            if stored is None:
                missing[name] = key
            else:
                losses[name] = stored
        network = self._network(look)
        seen = moments() if moments is not None and missing else self.moments
        try:
            for name, candidate in selection.items() if missing else ():
                network.replace(name, self._weights(name, [candidate], seen)[0])
            expected = self._expected(list(missing), neighbors)
            for name in track(list(missing), "measuring layers together", weights=expected):
                weights = self._weights(name, neighbors[name], seen)
                losses[name] = self._run(network, name, weights, missing[name])
        finally:
            for name in selection if missing else ():
                network.replace(name, layer_weight(self.model, name))
        return merged(losses)

    def recall(
        self, facts: Mapping[str, Any], count: int, compute: Callable[[], Sequence[float]], *, data: bool = False
    ) -> list[float]:
        """Return numbers that a strategy computes, from the cache if an interrupted search has computed them.

        Parameters
        ----------
        facts : mapping
            Everything that they depend on except the model, its second moments and, with `data`, the calibration data.
        count : int
            How many they are.
        compute : callable
            Returns them: finite and not negative.
        data : bool
            Whether they depend on the calibration data other than through the second moments.
        """
        key = self._facts_key(facts, data=data)
        numbers = self._lookup(key, count)
        if numbers is None:
            numbers = [float(number) for number in compute()]
            if self.cache is not None and key is not None:
                self.cache.put(key, numbers)
        return numbers

    def _facts_key(self, facts: Mapping[str, Any], *, data: bool) -> dict[str, Any] | None:
        if self.cache is None or (data and self._whole_data_hash is None):
            return None
        moments = {name: self._moments_hash(name) for name in sorted(self.moments or {})}
        return {
            "model": self._model_hash, "moments": moments, "data": self._whole_data_hash if data else None,
            "versions": [__version__, str(torch.__version__)], **facts,
        }  # fmt: skip

    def _network(self, look: _Look) -> NetworkProxy:
        if look not in self._networks:
            self._networks[look] = NetworkProxy(self.model, self._samples(look), look.taps, self._spare)
        return self._networks[look]

    def _fisher(self, look: _Look) -> FisherProxy:
        if look not in self._fishers:
            layers = [self.inventory.layer(name) for name in own_share(list(self.table().rows))]
            self._fishers[look] = FisherProxy(self.model, self._samples(look), layers, look.taps, spare=self._spare)
        return self._fishers[look]

    def _samples(self, look: _Look) -> list[Any]:
        if look not in self._batches:
            self._batches[look] = samples_between(self.batches, look.start, look.start + look.count)
        return self._batches[look]

    def _key(
        self,
        name: str,
        candidates: Sequence[Candidate | None],
        look: _Look,
        proxy: Measured,
        selection: Mapping[str, Candidate | None] | None = None,
    ) -> dict[str, Any] | None:
        """Return everything that the losses of a layer's candidates depend on, under a selection for other layers.

        None if there is no cache, or the data cannot be hashed.
        """
        data = None if self.cache is None else self._data_hash(look)
        if data is None:
            return None
        key: dict[str, Any] = {
            "model": self._model_hash, "layer": name, "candidates": [_described(c) for c in candidates],
            "moments": self._moments_hash(name), "data": data, "proxy": proxy, "taps": list(look.taps),
            "versions": [__version__, str(torch.__version__)],
        }  # fmt: skip
        if proxy == "fisher":
            key["draws"] = draws_for(look.count)
        if selection is not None:
            hashes = {name: None if c is None else self._moments_hash(name) for name, c in selection.items()}
            key["picks"] = {name: [_described(c), hashes[name]] for name, c in selection.items()}
        return key

    def _moments_hash(self, name: str) -> str:
        if name not in self._moments_hashes:
            moments = (self.moments or {}).get(name)
            self._moments_hashes[name] = tensor_hash({} if moments is None else moments.tensors())
        return self._moments_hashes[name]

    def _data_hash(self, look: _Look) -> str | None:
        if None in self._data_hashes.values():  # a warning has been given
            return None
        if look not in self._data_hashes:
            check_taps(self.model, look.taps)
            self._data_hashes[look] = data_hash(self.model, self._samples(look), look.taps)
        return self._data_hashes[look]

    @cached_property
    def _whole_data_hash(self) -> str | None:
        assert self.batches is not None
        return data_hash(self.model, self.batches)

    @cached_property
    def _model_hash(self) -> str:
        return module_hash(self.model)


def as_losses(value: Any, count: int) -> list[float] | None:
    """Return a value from a cache as losses; None unless it is a list of `count` finite, nonnegative numbers."""
    if not isinstance(value, list) or len(value) != count:
        return None
    return [float(v) for v in value] if all(is_number(v) and math.isfinite(v) and v >= 0 for v in value) else None


def unmeasured_text(names: Sequence[str]) -> str:
    """Return the sentence about unmeasured layers, without a full stop."""
    return (
        f"no change of {few(names)} changes the compared outputs on the calibration samples of the search. The loss is "
        f"predicted from the errors of the layers alone. Use samples that reach them ({spelled('samples', ...)}), or "
        "exclude them to keep them"
    )


def _described(candidate: Candidate | None) -> list[Any] | None:
    """Return a candidate in JSON's types; None for a kept layer."""
    return None if candidate is None else [candidate.method, list(candidate.ranks), dict(candidate.options)]
