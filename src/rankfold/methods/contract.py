"""The contract of factorizations, and `prepare`, which passes weights to them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from rankfold._registry import Registry
from rankfold.errors import InvalidWeight, RankError, UnsupportedLayer
from rankfold.factor.linalg import NO_DOUBLE, Metric, single_is_whole, wide_dtype
from rankfold.factor.moments import Moments
from rankfold.methods.sharing import shared
from rankfold.records import Blueprint, LayerInfo, Ranks


class Prepared(Protocol):
    """One layer, prepared for every rank."""

    def error(self, ranks: Ranks) -> float:
        """Return the predicted relative error, 0..1. It is cheap to compute and never increases with a rank."""
        ...

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the factors of the blueprint of these ranks, in its order."""
        ...


class Method(ABC):
    """A factorization: the layers it supports, its stages, and the computation of its factors.

    A subclass is a frozen dataclass whose fields are the method's options, one file each in this package, registered
    under its `name`.

    Attributes
    ----------
    name : str
        The name in plans and in the interface.
    adaptive : bool
        Whether weights of single precision or less are passed in float32, which the method widens where necessary. By
        default they are passed in float64.
    iterative : bool
        Whether factors are fitted by iterations: `Prepared.error` is then an upper bound on their error, not the error.
    balanced : bool
        Whether the factors share the weight's scale evenly and own their memory. `prepare` then scales only huge or
        tiny weights; by default it scales all of them.
    flexibility : int or None
        Score in table 6 of Kokhazadeh et al. (2025): 5 for shape and ranks, 4 for one rank per dimension that may be
        left whole, 3 for several ranks, 2 for one rank for all dimensions, 1 for a matrix with one rank. None is 1 for
        a single rank and 3 for several.
    """

    __slots__ = ()

    name: str
    adaptive: bool = False
    iterative: bool = False
    balanced: bool = False
    flexibility: int | None = None

    @abstractmethod
    def supports(self, layer: LayerInfo) -> str | None:
        """Return None if the layer can be factored, else the reason why not, for the user."""

    @abstractmethod
    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the largest useful rank in each position; at these ranks, the layer is reproduced exactly."""

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return the rank settings of the search: multiples of `multiple`, about `points` of them for a single rank.

        By default the product of evenly spaced ranks in each position, about ``points ** 2 / 4`` settings for several
        ranks.
        """
        limits = self.max_ranks(layer)
        side = points if len(limits) == 1 else max(3, round((points * points / 4) ** (1 / len(limits))))
        return list(product(*(rank_values(limit, multiple=multiple, points=side) for limit in limits)))

    @abstractmethod
    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return the stages of the factored layer."""

    def quick(self, layer: LayerInfo) -> Self:
        """Return the method for a search that compares the factors of many ranks: less accurate if they take long."""
        return self

    def variants(self, layer: LayerInfo, cores: int) -> Iterator[Mapping[str, Any]]:
        """Yield, for each shape of the factors with at most `cores` cores, the options that select it.

        An analysis of the rank space counts all of them. By default there is one shape, without options.
        """
        yield {}

    @abstractmethod
    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Do the expensive work that all ranks share.

        Parameters
        ----------
        weight : Tensor
            Canonical: ``(groups, out / groups, in / groups, *kernel)``, finite. Do not write to it: it may share the
            layer's memory. Its largest magnitude is 1, or within `HARMLESS` (or 0) for a balanced method.
        layer : LayerInfo
            The layer.
        moments : Moments or None
            Second moments of the layer's input. None minimizes the error of the weight instead of the output.
        """


@runtime_checkable
class Unfolds(Protocol):
    """A method whose ranks are matrix ranks, as strategies with analytic ranks require."""

    def unfoldings(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the matrices ``(groups, rows, columns)`` of a canonical weight, one per rank."""
        ...


registry: Registry[Method] = Registry("method")
"""All factorizations by name."""

get = registry.get
"""Return a method by name, with options, or a method object as it is; see `Registry.get`."""

DEPTHWISE = "a depthwise convolution has one input channel per group, so there is nothing to factor"


def check_supported(method: Method, layer: LayerInfo) -> None:
    """Raise `UnsupportedLayer`, with the reason, if the method cannot factor the layer."""
    reason = layer.skip or method.supports(layer)
    if reason is not None:
        raise UnsupportedLayer(f"method {method.name!r} cannot factor {layer.title}: {reason}.")


def check_ranks(method: Method, layer: LayerInfo, ranks: Ranks) -> None:
    """Raise `RankError`, with the layer and the allowed range, if ranks are invalid."""
    limits = method.max_ranks(layer)
    allowed = " and ".join(f"1..{limit}" for limit in limits)
    if len(ranks) != len(limits):
        number = "one integer" if len(limits) == 1 else f"{len(limits)} integers"
        example = tuple(max(1, limit // 4) for limit in limits)
        raise RankError(
            f"the ranks of {method.name!r} on {layer.title} must be {number} in {allowed}, such as {example}. "
            f"Got {list(ranks)} instead."
        )
    whole = all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks)
    if not whole or not all(1 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True)):
        raise RankError(
            f"the ranks of {method.name!r} on {layer.title} must be integers in {allowed}. Got {list(ranks)} instead."
        )


def check_finite(weight: Tensor, layer: LayerInfo) -> None:
    """Raise `InvalidWeight` if the weight of a layer contains NaN or infinity."""
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise InvalidWeight(
            f"the weight of {layer.title} contains {bad} NaN or infinite value(s). "
            "Repair the checkpoint, or exclude the layer."
        )


def to_canonical(weight: Tensor, layer: LayerInfo) -> Tensor:
    """View torch's weight as ``(groups, out / groups, in / groups, *kernel)``."""
    if layer.kind == "linear":
        return weight.unsqueeze(0)
    if layer.transposed:
        return weight.reshape(layer.groups, layer.group_in, layer.group_out, *layer.kernel).movedim(2, 1)
    return weight.reshape(layer.groups, layer.group_out, layer.group_in, *layer.kernel)


HARMLESS = (2.0**-10, 2.0**10)
"""Range of magnitudes of a weight that need no scaling: their squares are representable in any data type."""


_NO_CONTEXT = nullcontext()


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast. If autocast is off, the context is empty, which is much faster to enter."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NO_CONTEXT


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Runs without autocast, and distributes the weight's scale evenly over the factors."""

    prepared: Prepared
    scale: float | None
    device: str

    def error(self, ranks: Ranks) -> float:
        with without_autocast(self.device):
            return self.prepared.error(ranks)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        with without_autocast(self.device):
            factors = self.prepared.factorize(ranks)
        if self.scale is None:
            return factors
        share = self.scale ** (1 / len(factors))
        return tuple(factor * share for factor in factors)


def prepare(method: Method, weight: Tensor, layer: LayerInfo, moments: Moments | None = None) -> Prepared:
    """Prepare a layer with a method.

    The weight is checked, converted to float64 (float32 above a gibibyte, or where that is precise enough: see
    `rankfold.factor.linalg`) and scaled to magnitude 1, so that huge, tiny and half-precision weights are factored
    alike; balanced methods only need huge and tiny weights scaled. Autocast is disabled. The factors are on the
    weight's device, or on the CPU if the device does not support float64. Within `sharing_prepared`, a layer is
    prepared once.

    Parameters
    ----------
    weight : Tensor
        In torch's layout (`LayerInfo.weight_shape`), of any floating-point data type. It is not modified, but it may
        not be copied either: do not change it as long as the result is in use.

    Raises
    ------
    UnsupportedLayer
        If the method cannot factor the layer.
    InvalidWeight
        If the weight does not have the layer's shape, or contains NaN or infinity.
    """
    check_supported(method, layer)
    return shared(layer.name, method, weight, moments, lambda: _prepared(method, weight, layer, moments))


def _prepared(method: Method, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
    if weight.shape != layer.weight_shape:
        raise InvalidWeight(f"the weight of {layer.title} has shape {tuple(weight.shape)}, not {layer.weight_shape}.")
    weight, device = weight.detach(), weight.device.type
    if device in NO_DOUBLE:
        weight, device = weight.cpu(), "cpu"
    scale = None if method.balanced and _is_harmless(weight) else _largest(weight, layer)
    adaptive = method.adaptive and single_is_whole()
    single = adaptive and moments is None and weight.dtype != torch.float64
    dtype = torch.float32 if single else wide_dtype(weight)
    with without_autocast(device):
        canonical = to_canonical(weight if weight.dtype == dtype else weight.to(dtype), layer)
        if scale is not None:
            canonical = canonical / scale
        if moments is not None:
            patch = None if moments.patch is None else moments.patch.detach().to(canonical)
            moments = replace(moments, channel=moments.channel.detach().to(canonical), patch=patch)
        return _Scaled(method.prepare(canonical, layer, moments), scale, device)


def _is_harmless(weight: Tensor) -> bool:
    """Return whether the norm and the root mean square, and so the largest magnitude, are within `HARMLESS`."""
    return HARMLESS[0] * weight.numel() ** 0.5 <= torch.linalg.vector_norm(weight).item() <= HARMLESS[1]


def _largest(weight: Tensor, layer: LayerInfo) -> float:
    """Return the largest magnitude, or 1 if that is 0; raise `InvalidWeight` if the weight is not finite."""
    if not weight.numel():
        return 1.0
    low, high = torch.aminmax(weight)
    largest = max(-low.item(), high.item())
    if not math.isfinite(largest):
        check_finite(weight, layer)
    return largest or 1.0


def channel_metric(moments: Moments | None) -> Metric | None:
    """Return the metric of the input channels, or None without moments."""
    return None if moments is None else Metric.of(moments.channel)


def whiten_inputs(weight: Tensor, metric: Metric | None) -> Tensor:
    """Multiply the input mode of a canonical weight ``(groups, o, i, *kernel)`` by the metric's root."""
    if metric is None:
        return weight
    if weight.ndim == 3:
        return weight @ metric.root
    rows = weight.flatten(3).mT.flatten(1, 2)  # one matrix product; one per output takes several times as long
    return (rows @ metric.root).unflatten(1, (weight.shape[1], -1)).mT.reshape(weight.shape)


def rank_values(limit: int, *, multiple: int, points: int) -> list[int]:
    """Return about `points` evenly spaced multiples of `multiple` in 1..limit, and the limit itself."""
    if limit <= multiple:
        return [limit]
    count = limit // multiple
    step = max(1, -(-count // points))
    values = [multiple * k for k in range(step, count + 1, step)]
    if step > 1:  # small ranks matter most at strong compression
        values = sorted({multiple * k for k in range(1, step)} | set(values)) if step <= 4 else [multiple, *values]
    if values[-1] != limit:
        values.append(limit)
    return values
