"""The estimator of candidates: the loss that each would cause, by a proxy."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import is_number
from rankfold._hashing import module_hash, tensor_hash
from rankfold._printable import few
from rankfold._processes import merged, own_share
from rankfold._progress import track
from rankfold._version import __version__
from rankfold.candidates.cache import Cache
from rankfold.candidates.curves import read_off, representatives
from rankfold.candidates.fisher import FisherProxy
from rankfold.candidates.network import NetworkProxy, first_samples
from rankfold.candidates.outputs import check_taps, data_hash
from rankfold.candidates.proxies import MEASURED, ProxyConfig
from rankfold.errors import ConfigError, RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.inventory import Spare, layer_weight
from rankfold.records import Candidate, CandidateTable, Inventory, Ranks
from rankfold.surgery.approximate import approximations

Key = tuple[str, Ranks]
"""A candidate of a layer: method and ranks."""

MOST_MACS = 1e13
"""Multiply-accumulates that a search takes on its own account: minutes on two cores."""
FEWEST, MOST = 16, 256
"""Samples that it looks at, whatever they cost."""
TELLING = 1e-3
"""If a candidate of at least this error causes no loss at all, nothing was measured."""


class Estimator:
    """Tells the loss of candidates, additive over layers.

    Parameters
    ----------
    model : Module
        The original; left untouched.
    inventory : Inventory
        Its layers.
    table : callable
        Returns the candidate table; with `moments`, of output errors.
    weight_table : callable
        Returns the same candidates with the errors of the weights.
    batches : iterable or None
        Calibration data, for the proxies that run the network.
    moments : mapping or None
        Second moments by layer name, which the factors are found with.
    cache : str, Path or None
        Folder that keeps what was measured.
    spare : Spare, optional
        A copy of the model to work on; it is left as it was.

    Attributes
    ----------
    measured : int
        Candidates that were measured so far, by this process; those found in the cache do not count.
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
        self.measured = 0
        self._networks: dict[ProxyConfig, NetworkProxy] = {}
        self._fishers: dict[ProxyConfig, FisherProxy] = {}
        self._taken: dict[ProxyConfig, list[Any]] = {}
        self._hashes: dict[ProxyConfig, str | None] = {}
        self._unmeasured: dict[ProxyConfig, tuple[str, ...]] = {}
        self._seen: dict[str, str] = {}
        self._known: dict[tuple[ProxyConfig, str, tuple[Key, ...]], list[float]] = {}

    def check(self, config: ProxyConfig, *, together: bool = False) -> None:
        """Check that there is what a proxy needs.

        Parameters
        ----------
        config : ProxyConfig
            Which proxy.
        together : bool
            Whether layers are to be measured together, too (`joint`).

        Raises
        ------
        ConfigError
            If calibration data is needed and there is none, or the proxy cannot measure layers together.
        """
        proxy = self.proxy(config)
        if proxy != "weight" and self.batches is None:
            raise ConfigError(f"proxy={proxy!r} needs calibration data. Pass calibration=..., or proxy='weight'.")
        if together and self.batches is None:
            raise ConfigError("rounds need calibration data to measure on. Pass calibration=..., or rounds=0.")
        if together and proxy == "fisher":
            raise ConfigError("rounds need proxy='network': gradients do not tell what layers do to each other.")
        if proxy == "output" and self.moments is None:
            raise ConfigError("proxy='output' needs second moments. Leave data_aware=False out, or choose another.")

    def proxy(self, config: ProxyConfig) -> str:
        """Return the proxy that "auto" stands for here, or the one asked for."""
        if config.proxy == "auto":
            return "weight" if self.batches is None else "network"
        return config.proxy

    def single(self, config: ProxyConfig) -> dict[str, dict[Key, float]]:
        """Return the loss of every candidate of the table if only it is applied, by layer, method and ranks.

        Where not one candidate of a layer changes what is compared, however large its error, the samples say nothing of
        the layer (`unmeasured`). Its losses are then those of its candidates' errors, on the scale of the most
        sensitive layer of the same shape, or of the median layer if there is no other of its shape.
        """
        proxy = self.proxy(config)
        if proxy not in MEASURED:
            table = self.weight_table() if proxy == "weight" else self.table()
            return {name: {(c.method, c.ranks): c.error**2 for c in row} for name, row in table.rows.items()}
        rows = self.table().rows
        chosen = {name: representatives(row, config.points) for name, row in rows.items()}
        found: dict[str, list[float]] = {}
        for name in track(own_share(list(rows)), "measuring layers"):
            found[name] = self._measure(name, [rows[name][i] for i in chosen[name]], config)
        found = merged(found)
        measured = {name: dict(zip(chosen[name], found[name], strict=True)) for name in rows}
        scales = self._scales(config, rows, measured)
        out: dict[str, dict[Key, float]] = {}
        for name, row in rows.items():
            scale = scales.get(name)
            losses = read_off(row, measured[name]) if scale is None else [scale * c.error**2 for c in row]
            out[name] = {(c.method, c.ranks): loss for c, loss in zip(row, losses, strict=True)}
        return out

    def unmeasured(self, config: ProxyConfig) -> tuple[str, ...]:
        """Return the layers of which `single` could measure nothing."""
        return self._unmeasured.get(config, ())

    @property
    def every_unmeasured(self) -> list[str]:
        """The layers of which nothing could be measured, with any options so far."""
        return list(dict.fromkeys(name for names in self._unmeasured.values() for name in names))

    def _scales(
        self, config: ProxyConfig, rows: Mapping[str, Sequence[Candidate]], measured: Mapping[str, Mapping[int, float]]
    ) -> dict[str, float]:
        """Return, for each layer of which nothing was measured, the loss of a candidate with error 1."""
        unknown, ratios = [], dict[str, float]()
        for name, row in rows.items():
            squares = {i: row[i].error ** 2 for i in measured[name]}
            if max(squares.values(), default=0.0) < TELLING**2:
                continue  # every candidate is all but exact
            if any(measured[name].values()):
                ratios[name] = sum(measured[name].values()) / sum(squares.values())
            else:
                unknown.append(name)
        self._tell(config, unknown)
        shapes = {name: self.inventory.layer(name).describe() for name in rows}
        scales = {}
        for name in unknown:
            alike = [ratio for other, ratio in ratios.items() if shapes[other] == shapes[name]]
            scales[name] = max(alike) if alike else statistics.median(ratios.values()) if ratios else 1.0
        return scales

    def _tell(self, config: ProxyConfig, unknown: Sequence[str]) -> None:
        """Warn of layers of which nothing was measured, once, except those that no data reaches."""
        if config in self._unmeasured:
            return
        self._unmeasured[config] = tuple(unknown)
        news = [name for name in unknown if self.moments is None or name in self.moments]
        if news:
            warnings.warn(f"{unmeasured_text(news)}.", RankfoldWarning, stacklevel=2)

    def _measure(self, name: str, candidates: Sequence[Candidate], config: ProxyConfig) -> list[float]:
        known = (config, name, tuple((c.method, c.ranks) for c in candidates))
        if known not in self._known:  # the next budget asks for the same
            self._known[known] = self._stored(name, candidates, config)
        return self._known[known]

    def _stored(self, name: str, candidates: Sequence[Candidate], config: ProxyConfig) -> list[float]:
        key = self._key(name, candidates, config)
        known = self._lookup(key, len(candidates))
        if known is not None:
            return known
        proxy = self._fisher(config) if self.proxy(config) == "fisher" else self._network(config)
        values = proxy.alone(self.inventory.layer(name), self._weights(name, candidates))
        self._keep(key, values)
        return values

    def _lookup(self, key: Mapping[str, Any] | None, count: int) -> list[float] | None:
        return None if self.cache is None or key is None else as_losses(self.cache.get(key), count)

    def _keep(self, key: Mapping[str, Any] | None, values: list[float]) -> None:
        self.measured += len(values)
        if self.cache is not None and key is not None:
            self.cache.put(key, values)

    def _weights(self, name: str, candidates: Sequence[Candidate | None]) -> list[Tensor]:
        weight, layer = layer_weight(self.model, name), self.inventory.layer(name)
        factored = [candidate for candidate in candidates if candidate is not None]
        made = approximations(weight, layer, factored, (self.moments or {}).get(name))
        return [weight if candidate is None else next(made) for candidate in candidates]

    def joint(
        self,
        config: ProxyConfig,
        picks: Mapping[str, Candidate | None],
        nearby: Mapping[str, Sequence[Candidate | None]],
    ) -> dict[str, list[float]]:
        """Return the loss of the network with these picks applied, one layer's replaced by each of some others.

        Parameters
        ----------
        config : ProxyConfig
            Of "network".
        picks : mapping
            The candidate that is applied, by layer name; None keeps a layer.
        nearby : mapping
            What to try instead.
        """
        found: dict[str, list[float]] = {}
        missing: dict[str, dict[str, Any] | None] = {}
        for name in own_share(list(nearby)):
            key = self._key(name, nearby[name], config, picks)
            known = self._lookup(key, len(nearby[name]))
            if known is None:
                missing[name] = key
            else:
                found[name] = known
        network = self._network(config)
        try:
            for name, pick in picks.items() if missing else ():
                network.replace(name, self._weights(name, [pick])[0])
            for name in track(list(missing), "measuring layers together"):
                found[name] = network.alone(self.inventory.layer(name), self._weights(name, nearby[name]))
                self._keep(missing[name], found[name])
        finally:
            for name in picks if missing else ():
                network.replace(name, layer_weight(self.model, name))
        return merged(found)

    def _network(self, config: ProxyConfig) -> NetworkProxy:
        if config not in self._networks:
            self._networks[config] = NetworkProxy(self.model, self._samples(config), config.taps, self._spare)
        return self._networks[config]

    def _fisher(self, config: ProxyConfig) -> FisherProxy:
        if config not in self._fishers:
            layers = [self.inventory.layer(name) for name in own_share(list(self.table().rows))]
            self._fishers[config] = FisherProxy(self.model, self._samples(config), layers, config.taps)
        return self._fishers[config]

    def _samples(self, config: ProxyConfig) -> list[Any]:
        """Return the batches that are looked at."""
        if config not in self._taken:
            count = config.samples
            if count is None:  # a candidate costs half a pass on the average: what lies before its layer is remembered
                measured = sum(len(representatives(row, config.points)) for row in self.table().rows.values())
                per_sample = self.inventory.total.macs / self.inventory.batch * max(measured, 1) / 2
                count = round(min(max(MOST_MACS / max(per_sample, 1), FEWEST), MOST))
            self._taken[config] = first_samples(self.batches, count)
        return self._taken[config]

    def _key(
        self,
        name: str,
        candidates: Sequence[Candidate | None],
        config: ProxyConfig,
        picks: Mapping[str, Candidate | None] | None = None,
    ) -> dict[str, Any] | None:
        """Return all that the losses of a layer's candidates depend on; `picks` are applied to the other layers.

        None if there is no cache, or the data holds objects that cannot be looked into.
        """
        data = None if self.cache is None else self._data_hash(config)
        if data is None:
            return None
        key: dict[str, Any] = {
            "model": self._model_hash,
            "layer": name,
            "candidates": [_described(c) for c in candidates],
            "moments": self._moments_hash(name),
            "data": data,
            "proxy": self.proxy(config),
            "taps": list(config.taps),
            "versions": [__version__, str(torch.__version__)],
        }
        if picks is not None:
            key["picks"] = {n: [_described(c), None if c is None else self._moments_hash(n)] for n, c in picks.items()}
        return key

    def _moments_hash(self, name: str) -> str:
        if name not in self._seen:
            moments = (self.moments or {}).get(name)
            self._seen[name] = tensor_hash({} if moments is None else moments.tensors())
        return self._seen[name]

    def _data_hash(self, config: ProxyConfig) -> str | None:
        """Return a hash of the samples; None if they cannot be hashed."""
        if config not in self._hashes:
            check_taps(self.model, config.taps)
            self._hashes[config] = data_hash(self.model, self._samples(config), config.taps)
        return self._hashes[config]

    @cached_property
    def _model_hash(self) -> str:
        return module_hash(self.model)


def as_losses(value: Any, count: int) -> list[float] | None:
    """Return a value from a cache as numbers; None unless it is a list of that many, finite and not negative."""
    if not isinstance(value, list) or len(value) != count:
        return None
    return [float(v) for v in value] if all(is_number(v) and math.isfinite(v) and v >= 0 for v in value) else None


def unmeasured_text(names: Sequence[str]) -> str:
    """Return the sentence for layers of which nothing could be measured, without a full stop."""
    return (
        f"no change of {few(names)} changes what is compared on the calibration samples that the search looks at: "
        "judged by the errors of the layers alone. Give samples that reach them (samples=...), or exclude them to keep "
        "them as they are"
    )


def _described(candidate: Candidate | None) -> list[Any] | None:
    """Return a candidate as JSON has it; None for a layer that is kept."""
    return None if candidate is None else [candidate.method, list(candidate.ranks), dict(candidate.options)]
