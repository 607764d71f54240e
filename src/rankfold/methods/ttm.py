"""``ttm``: TT-matrix of a linear layer (the "T3F" of Kokhazadeh et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from rankfold._config import is_integer, require
from rankfold.errors import ConfigError
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.factor.tensor_train import TensorTrain, orthonormalized
from rankfold.methods.contract import rank_values, registry
from rankfold.records import BiasSpec, Blueprint, ConvSpec, LayerInfo, Ranks, ReshapeSpec, Size, Stage

MOST_CORES = 32
"""No layer has so many factors that this is a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TTMConfig:
    """Options of ``ttm``.

    Parameters
    ----------
    cores : int
        Number of cores d; inputs and outputs are split into d factors each, as even as their divisors allow.
    out_shape, in_shape : tuple of int or None
        The factors by hand, ``O = prod(out_shape)`` and ``I = prod(in_shape)``; both of length `cores`.
    """

    cores: int = 2
    out_shape: Size | None = None
    in_shape: Size | None = None

    def __post_init__(self) -> None:
        most = f"an integer in 2..{MOST_CORES}"
        require(is_integer(self.cores) and 2 <= self.cores <= MOST_CORES, "cores", self.cores, most)
        for option in ("out_shape", "in_shape"):
            shape = getattr(self, option)
            whole = (
                isinstance(shape, tuple) and len(shape) == self.cores and all(is_integer(n) and n > 0 for n in shape)
            )
            require(shape is None or whole, option, shape, f"{self.cores} positive integers (as many as 'cores')")


def even_factors(n: int, count: int) -> Size:
    """Return `count` factors of n, largest first, with the least largest factor.

    Examples
    --------
    >>> even_factors(400, 2), even_factors(120, 3), even_factors(7, 2)
    ((20, 20), (6, 5, 4), (7, 1))
    """
    if count == 1:
        return (n,)
    best: Size | None = None
    for d in range(1, n + 1):
        if n % d == 0 and d**count >= n:  # d is the largest factor
            rest = even_factors_below(n // d, count - 1, d)
            if rest is not None:
                best = (d, *rest)
                break
    assert best is not None  # d = n always fits
    return best


def even_factors_below(n: int, count: int, limit: int) -> Size | None:
    """Return `count` factors of n, none above `limit`, as even as possible; None if there are none."""
    if n == 1:
        return (1,) * count
    if count == 1:
        return (n,) if n <= limit else None
    for d in range(math.ceil(n ** (1 / count) - 1e-9), limit + 1):
        if n % d == 0:
            rest = even_factors_below(n // d, count - 1, d)
            if rest is not None:
                return (d, *rest)
    return None


@dataclass(frozen=True, slots=True)
class PreparedTTM:
    """The weight as ``(1, o1 i1, ..., od id)`` in the metric."""

    train: TensorTrain
    outs: Size
    ins: Size
    metrics: tuple[Metric, ...] | None

    def error(self, ranks: Ranks) -> float:
        """Return the TT-SVD bound, root of the sum of the bonds' squared errors."""
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


class TTM:
    """TT-matrix; ranks ``(r_1, ..., r_{d-1})``, cores ``(r_{j-1}, o_j, i_j, r_j)``.

    Novikov et al. (2015), "Tensorizing neural networks", sections 3.1 and 4. The input is viewed as ``i_1 x ... x
    i_d``; core j is contracted with ``(r_{j-1}, i_j)`` and leaves ``(o_j, r_j)`` in their place, so each contraction is
    a pointwise convolution between two reshapes and nothing is ever transposed.

    With moments, each mode is whitened by its marginal: the second moment is approximated by the Kronecker product of
    its partial traces, which is what a TT-matrix can undo.
    """

    name = "ttm"
    adaptive = True

    def __init__(self, config: TTMConfig) -> None:
        self.config = config

    def shapes(self, layer: LayerInfo) -> tuple[Size, Size]:
        """Return the factors of the outputs and of the inputs."""
        outs = self.config.out_shape or even_factors(layer.out_channels, self.config.cores)
        ins = self.config.in_shape or even_factors(layer.in_channels, self.config.cores)
        for option, shape, n in (("out_shape", outs, layer.out_channels), ("in_shape", ins, layer.in_channels)):
            if math.prod(shape) != n:
                raise ConfigError(
                    f"{option} of 'ttm' on {layer.title} must multiply to {n}. "
                    f"Got {shape} (= {math.prod(shape)}) instead."
                )
        return outs, ins

    def supports(self, layer: LayerInfo) -> str | None:
        """Linear layers whose sizes can be split."""
        if layer.kind != "linear":
            return "it is for linear layers"
        if max(even_factors(layer.out_channels, 2)[1], even_factors(layer.in_channels, 2)[1]) == 1:
            return "neither its inputs nor its outputs can be split into factors"
        return None

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the smaller side of each bond's unfolding."""
        outs, ins = self.shapes(layer)
        sizes = [o * i for o, i in zip(outs, ins, strict=True)]
        return tuple(min(math.prod(sizes[:j]), math.prod(sizes[j:])) for j in range(1, len(sizes)))

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return the product of evenly spaced ranks of every bond."""
        limits = self.max_ranks(layer)
        side = points if len(limits) == 1 else max(3, round((points * points / 4) ** (1 / len(limits))))
        return list(product(*(rank_values(limit, multiple=multiple, points=side) for limit in limits)))

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return a reshape and a pointwise convolution for each core, a last reshape, and the bias."""
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

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> PreparedTTM:
        """Take the weight; spectra and cores are found when errors or factors are asked for."""
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
        return PreparedTTM(TensorTrain.of(tensor), outs, ins, metrics)


def _marginal(moment: Tensor, shape: Size, mode: int) -> Tensor:
    """Return the partial trace ``(i_j, i_j)`` of a second moment over all modes but one."""
    before, size, after = math.prod(shape[:mode]), shape[mode], math.prod(shape[mode + 1 :])
    return torch.einsum("aibajb->ij", moment.reshape(before, size, after, before, size, after))


registry.register("ttm", TTM, config=TTMConfig, summary="TT-matrix of linear layers (T3F)")
