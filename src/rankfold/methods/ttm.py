"""``ttm``: TT-matrix of a linear layer (the "T3F" of Kokhazadeh et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold._config import is_integer, require
from rankfold.errors import ConfigError
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.factor.tensor_train import TensorTrain, orthonormalized
from rankfold.methods.contract import Method, registry
from rankfold.records import BiasSpec, Blueprint, ConvSpec, LayerInfo, Ranks, ReshapeSpec, Size, Stage

MOST_CORES = 32
"""More factors than any layer has."""


def even_factors(n: int, count: int) -> Size:
    """Return `count` factors of n, in descending order, whose largest factor is as small as possible.

    Examples
    --------
    >>> even_factors(400, 2), even_factors(120, 3), even_factors(7, 2)
    ((20, 20), (6, 5, 4), (7, 1))
    """
    factors = _even_factors(n, count, n)
    assert factors is not None  # n, 1, ..., 1 at worst
    return factors


def _even_factors(n: int, count: int, limit: int) -> Size | None:
    """Return `count` factors of n, none above `limit`, as even as possible; None if there are none."""
    if n == 1:
        return (1,) * count
    if count == 1:
        return (n,) if n <= limit else None
    for d in range(math.ceil(n ** (1 / count) - 1e-9), limit + 1):
        if n % d == 0:
            rest = _even_factors(n // d, count - 1, d)
            if rest is not None:
                return (d, *rest)
    return None


def ordered_factors(n: int, count: int) -> list[Size]:
    """Return every ordered factorization of n into `count` factors of at least 2.

    Examples
    --------
    >>> ordered_factors(12, 2)
    [(2, 6), (3, 4), (4, 3), (6, 2)]
    """
    if count == 1:
        return [(n,)] if n >= 2 else []
    divisors = [d for d in range(2, n // 2 + 1) if n % d == 0]
    return [(d, *rest) for d in divisors for rest in ordered_factors(n // d, count - 1)]


@dataclass(frozen=True, slots=True)
class PreparedTTM:
    """Tensor trains of the weight ``(1, o1 i1, ..., od id)`` in the metric."""

    train: TensorTrain
    outs: Size
    ins: Size
    metrics: tuple[Metric, ...] | None

    def error(self, ranks: Ranks) -> float:
        """Return the TT-SVD bound: the root of the sum of the bonds' squared errors."""
        return self.train.relative_error(ranks)

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the cores as weights of pointwise convolutions, ``(1, o_j r_j, r_{j-1} i_j, 1)``."""
        cores = self.train.cores(ranks)
        if self.metrics is not None:
            cores = orthonormalized([self._unwhitened(core, j) for j, core in enumerate(cores)])
        stages = []
        for j, core in enumerate(cores):
            before, after = core.shape[1], core.shape[3]
            split = core[0].reshape(before, self.outs[j], self.ins[j], after)
            stages.append(split.permute(1, 3, 0, 2).reshape(1, self.outs[j] * after, before * self.ins[j], 1))
        return tuple(stages)

    def _unwhitened(self, core: Tensor, j: int) -> Tensor:
        assert self.metrics is not None
        split = core.unflatten(2, (self.outs[j], self.ins[j]))
        return torch.einsum("gaoib,ij->gaojb", split, self.metrics[j].inverse[0]).reshape(core.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class TTM(Method):
    """TT-matrix; ranks ``(r_1, ..., r_{d-1})``, cores ``(r_{j-1}, o_j, i_j, r_j)``.

    Novikov et al. (2015), "Tensorizing neural networks", sections 3.1 and 4. The input is viewed as ``i_1 x ... x
    i_d``. Core j is contracted with ``(r_{j-1}, i_j)`` and replaces them by ``(o_j, r_j)``, so each contraction is a
    pointwise convolution between two reshapes, without any transposition.

    With moments, each mode is whitened by its marginal: the second moment is approximated by the Kronecker product of
    its partial traces, which keeps the whitening invertible core by core.

    Parameters
    ----------
    cores : int or None
        Number of cores d. Inputs and outputs are split into d factors each, as evenly as possible. None means 2, and an
        analysis of the rank space then counts every tensor shape.
    out_shape, in_shape : tuple of int or None
        Explicit factors, ``O = prod(out_shape)`` and ``I = prod(in_shape)``, both of length `cores`.
    """

    name = "ttm"
    adaptive = True
    flexibility = 5

    cores: int | None = None
    out_shape: Size | None = None
    in_shape: Size | None = None

    def __post_init__(self) -> None:
        cores = 2 if self.cores is None else self.cores
        most = f"an integer in 2..{MOST_CORES}"
        require(is_integer(cores) and 2 <= cores <= MOST_CORES, "cores", self.cores, most)
        for option in ("out_shape", "in_shape"):
            shape = getattr(self, option)
            whole = isinstance(shape, tuple) and len(shape) == cores and all(is_integer(n) and n > 0 for n in shape)
            require(shape is None or whole, option, shape, f"{cores} positive integers (as many as 'cores')")

    def shapes(self, layer: LayerInfo) -> tuple[Size, Size]:
        """Return the factors of the outputs and of the inputs."""
        outs = self.out_shape or even_factors(layer.out_channels, self.cores or 2)
        ins = self.in_shape or even_factors(layer.in_channels, self.cores or 2)
        for option, shape, n in (("out_shape", outs, layer.out_channels), ("in_shape", ins, layer.in_channels)):
            if math.prod(shape) != n:
                raise ConfigError(
                    f"the product of {option} of 'ttm' on {layer.title} must be {n}. "
                    f"Got {shape}, with product {math.prod(shape)}, instead."
                )
        return outs, ins

    def supports(self, layer: LayerInfo) -> str | None:
        """Linear layers whose inputs or outputs can be factored."""
        if layer.kind != "linear":
            return "it only supports linear layers"
        if max(even_factors(layer.out_channels, 2)[1], even_factors(layer.in_channels, 2)[1]) == 1:
            return "neither its inputs nor its outputs can be split into factors"
        return None

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of each bond's unfolding."""
        outs, ins = self.shapes(layer)
        sizes = [o * i for o, i in zip(outs, ins, strict=True)]
        return tuple(min(math.prod(sizes[:j]), math.prod(sizes[j:])) for j in range(1, len(sizes)))

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return a reshape and a pointwise convolution per core, a final reshape, and the bias."""
        outs, ins = self.shapes(layer)
        padded = (1, *ranks, 1)
        stages: list[Stage] = []
        for j, (o, i) in enumerate(zip(outs, ins, strict=True)):
            stages.append(ReshapeSpec(name=f"view{j}", tail=(padded[j] * i, math.prod(ins[j + 1 :]))))
            stages.append(
                ConvSpec(
                    name=f"core{j}", in_channels=padded[j] * i, out_channels=o * padded[j + 1],
                    kernel=(1,), stride=(1,), padding=(0,), dilation=(1,),
                )
            )  # fmt: skip
        stages.append(ReshapeSpec(name="view", tail=(layer.out_channels,)))
        if layer.bias:
            stages.append(BiasSpec(name="offset", features=layer.out_channels))
        return Blueprint(tuple(stages))

    def variants(self, layer: LayerInfo, cores: int) -> Iterator[Mapping[str, Any]]:
        """Yield every tensor shape, unless the options specify one.

        The shapes are all pairs of an ordered factorization of the outputs and one of the inputs into d factors of at
        least 2, for d from 2 to `cores`. The order matters: it changes the rank limits and the MACs.
        """
        if self.cores is not None or self.out_shape or self.in_shape:
            yield {}
            return
        for d in range(2, cores + 1):
            for outs in ordered_factors(layer.out_channels, d):
                for ins in ordered_factors(layer.in_channels, d):
                    yield {"cores": d, "out_shape": outs, "in_shape": ins}

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTTM:
        """Keep the weight; spectra and cores are computed when errors or factors are requested."""
        outs, ins = self.shapes(layer)
        d = len(outs)
        split = weight[0].reshape(*outs, *ins)
        metrics = None
        if moments is not None:
            metrics = tuple(Metric.of(_marginal(moments.channel[0], ins, j).unsqueeze(0)) for j in range(d))
            for j, metric in enumerate(metrics):
                split = (split.movedim(d + j, -1) @ metric.root[0]).movedim(-1, d + j)
        order = [axis for j in range(d) for axis in (j, d + j)]
        tensor = split.permute(order).reshape(1, *(o * i for o, i in zip(outs, ins, strict=True)))
        return PreparedTTM(TensorTrain(tensor), outs, ins, metrics)


def _marginal(moment: Tensor, shape: Size, mode: int) -> Tensor:
    """Return the partial trace ``(i_j, i_j)`` of a second moment over all modes but one."""
    before, size, after = math.prod(shape[:mode]), shape[mode], math.prod(shape[mode + 1 :])
    return torch.einsum("aibajb->ij", moment.reshape(before, size, after, before, size, after))


registry.register(TTM, summary="TT-matrix of linear layers (T3F)")
