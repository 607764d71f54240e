"""The contract that every factorization meets, and the one door to its expensive part."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rankfold._registry import Registry
from rankfold.errors import InvalidWeight, RankError, UnsupportedLayer
from rankfold.factor.linalg import NO_DOUBLE, Metric, single_is_whole, wide_dtype
from rankfold.factor.moments import Moments
from rankfold.methods.sharing import shared
from rankfold.records import Blueprint, LayerInfo, Ranks


class Prepared(Protocol):
    """One layer, made ready for every rank."""

    def error(self, ranks: Ranks) -> float:
        """Return the predicted relative error, 0..1; never grows with a rank; cheap for every rank."""
        ...

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the tensors that fill the blueprint of these ranks, in its order."""
        ...


class Method(ABC):
    """A factorization: what it supports, what it is made of, and how to find the factors.

    A subclass is a frozen dataclass whose fields are the method's options, one file each in this package, registered
    under its `name`.

    Attributes
    ----------
    name : str
        The name that users give and plans record.
    adaptive : bool
        Whether weights of at most single precision are given in float32, which the method widens where its result needs
        it. By default they are given in float64.
    balanced : bool
        Whether the factors share the weight's scale evenly and own their memory. `prepare` then scales only weights
        that are huge or tiny; by default it scales all of them.
    flexibility : int or None
        Score in table 6 of Kokhazadeh et al. (2025): 5 for shape and ranks, 4 for a rank for each dimension, which may
        be left whole, 3 for several ranks, 2 for one rank for all dimensions, 1 for a matrix with one rank. None is 1
        for a single rank and 3 for several.
    """

    __slots__ = ()

    name: str
    adaptive: bool = False
    balanced: bool = False
    flexibility: int | None = None

    @abstractmethod
    def supports(self, layer: LayerInfo) -> str | None:
        """Return None if the layer can be factored, else the reason in words for the user."""

    @abstractmethod
    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the largest sensible rank in each position; with all of them the layer is reproduced."""

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return rank settings to choose from: multiples of `multiple`, about `points` of them for a single rank.

        By default the product of evenly spaced ranks in each position, about ``points ** 2 / 4`` settings for several.
        """
        limits = self.max_ranks(layer)
        side = points if len(limits) == 1 else max(3, round((points * points / 4) ** (1 / len(limits))))
        return list(product(*(rank_values(limit, multiple=multiple, points=side) for limit in limits)))

    @abstractmethod
    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return the stages of the factored layer."""

    def variants(self, layer: LayerInfo, cores: int) -> Iterator[Mapping[str, Any]]:
        """Yield the options that an analysis of the whole rank space adds, one mapping for each shape of the factors.

        By default the factors have one shape and nothing is added.

        Parameters
        ----------
        layer : LayerInfo
            The layer.
        cores : int
            Most cores of a tensor shape.
        """
        yield {}

    @abstractmethod
    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Do the expensive part once.

        Parameters
        ----------
        weight : Tensor
            Canonical: ``(groups, out / groups, in / groups, *kernel)``, finite. Do not write to it: it may be the
            layer's own memory. Its largest magnitude is 1, of a balanced method within `HARMLESS` (or 0).
        layer : LayerInfo
            The layer.
        moments : Moments or None
            Second moments of the layer's input; None minimises the error of the weight instead of the output's.
        """


@runtime_checkable
class Unfolds(Protocol):
    """A method each of whose ranks is the rank of a matrix; strategies that find ranks analytically ask for it."""

    def unfoldings(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the matrices ``(groups, rows, columns)`` of a canonical weight, one for each rank."""
        ...


registry: Registry[Method] = Registry("method")
"""All factorizations by name."""

get = registry.get
"""Return a method by name, with options, or a method object as it is; see `Registry.get`."""


def check_supported(method: Method, layer: LayerInfo) -> None:
    """Raise `UnsupportedLayer`, with the reason, if the method cannot factor the layer."""
    reason = layer.skip or method.supports(layer)
    if reason is not None:
        raise UnsupportedLayer(f"method {method.name!r} cannot factor {layer.title}: {reason}.")


def check_ranks(method: Method, layer: LayerInfo, ranks: Ranks) -> None:
    """Raise `RankError`, naming the layer and what is allowed, unless the ranks fit."""
    limits = method.max_ranks(layer)
    allowed = ", ".join(f"1..{limit}" for limit in limits)
    if len(ranks) != len(limits):
        number = "one integer" if len(limits) == 1 else f"{len(limits)} integers"
        example = tuple(max(1, limit // 4) for limit in limits)
        raise RankError(
            f"'ranks' of {method.name!r} on {layer.title} must be {number} in {allowed}, such as {example}. "
            f"Got {list(ranks)} instead."
        )
    whole = all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks)
    if not whole or not all(1 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True)):
        raise RankError(
            f"'ranks' of {method.name!r} on {layer.title} must be integers in {allowed}. Got {list(ranks)} instead."
        )


def check_finite(weight: Tensor, layer: LayerInfo) -> None:
    """Raise `InvalidWeight`, naming the layer, if a weight holds NaN or infinity."""
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise InvalidWeight(
            f"the weight of {layer.title} holds {bad} NaN or infinite value(s). "
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
"""Least and greatest magnitude of a weight that is left as it is: its squares are far from the ends of any range."""


_NO_CONTEXT = nullcontext()


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; an empty one where there is none, which is much quicker to enter."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NO_CONTEXT


class _Scaled:
    """Puts the weight's scale back onto the factors, evenly; keeps autocast away from what is computed when needed."""

    __slots__ = ("_device", "_prepared", "_scale")

    def __init__(self, prepared: Prepared, scale: float | None, device: str) -> None:
        self._prepared = prepared
        self._scale = scale
        self._device = device

    def error(self, ranks: Ranks) -> float:
        with without_autocast(self._device):
            return self._prepared.error(ranks)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        with without_autocast(self._device):
            factors = self._prepared.factorize(ranks)
        if self._scale is None:
            return factors
        share = self._scale ** (1 / len(factors))
        return tuple(factor * share for factor in factors)


def prepare(method: Method, weight: Tensor, layer: LayerInfo, moments: Moments | None = None) -> Prepared:
    """Prepare a layer with a method: the one place where weights enter the kernels.

    Checks the weight, works in float64 (float32 above a gibibyte, and where a method finds that enough: see
    `rankfold.factor.linalg`), outside of autocast, and scales the weight to magnitude 1, so that huge, tiny and
    half-precision weights are factored alike (where a method is balanced, only huge and tiny ones are scaled). Factors
    are on the weight's device; on the CPU if that has no float64. Within `sharing_prepared` a layer is prepared once.

    Parameters
    ----------
    weight : Tensor
        In torch's layout (`LayerInfo.weight_shape`), any floating data type; left untouched. It is not copied where
        nothing has to be converted: leave it as it is, too, for as long as the result is in use.

    Raises
    ------
    UnsupportedLayer
        If the method cannot factor the layer.
    InvalidWeight
        If the weight has another shape than the layer, or holds NaN or infinity.
    """
    check_supported(method, layer)
    return shared(layer.name, repr(method), weight, moments, lambda: _prepared(method, weight, layer, moments))


def _prepared(method: Method, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
    if weight.shape != layer.weight_shape:
        raise InvalidWeight(
            f"the weight of {layer.title} has shape {tuple(weight.shape)}, expected {layer.weight_shape}."
        )
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
            moments = Moments(
                channel=moments.channel.detach().to(canonical),
                patch=None if moments.patch is None else moments.patch.detach().to(canonical),
                count=moments.count,
            )
        return _Scaled(method.prepare(canonical, layer, moments), scale, device)


def _is_harmless(weight: Tensor) -> bool:
    """Return whether the largest magnitude is surely within `HARMLESS`: the norm and the root mean square are."""
    return HARMLESS[0] * weight.numel() ** 0.5 <= torch.linalg.vector_norm(weight).item() <= HARMLESS[1]


def _largest(weight: Tensor, layer: LayerInfo) -> float:
    """Return the largest magnitude, 1 if that is 0; raise `InvalidWeight` if the weight holds NaN or infinity."""
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
    flat = weight.flatten(3) if weight.ndim > 3 else weight.unsqueeze(-1)
    return (metric.root.unsqueeze(1) @ flat).reshape(weight.shape)


def rank_values(limit: int, *, multiple: int, points: int) -> list[int]:
    """Return about `points` ranks in 1..limit: multiples of `multiple`, evenly spaced, the largest included.

    A limit below `multiple` gives just the limit.
    """
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
