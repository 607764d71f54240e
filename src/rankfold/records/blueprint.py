"""Blueprints: the stages of a factored layer, without weights.

``cost`` counts the same blueprint that ``surgery`` builds, so the cost of a candidate equals the cost of its module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rankfold.records.layer import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """One stock convolution, transposed or not; its factor is canonical (`factor_shape`)."""

    name: str
    in_channels: int
    out_channels: int
    kernel: Size
    stride: Size
    padding: Size | str
    dilation: Size
    output_padding: Size = ()
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    bias: bool = False

    indices = 0

    @property
    def factor_shape(self) -> Size:
        """``(groups, out_channels / groups, in_channels / groups, *kernel)``."""
        return (self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether it only mixes channels: kernel and stride 1, no padding, not transposed."""
        unpadded = isinstance(self.padding, str) or not any(self.padding)
        return unpadded and not self.transposed and {*self.kernel, *self.stride} <= {1}

    @property
    def weights(self) -> int:
        """Weights without the bias; each is multiplied once per position."""
        return math.prod(self.factor_shape)

    @property
    def params(self) -> int:
        """Parameters, the bias included."""
        return self.weights + (self.out_channels if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One stock linear layer; its factor is ``(out_features, in_features)``."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    indices = 0
    pointwise = True

    @property
    def factor_shape(self) -> Size:
        """Shape of the factor."""
        return (self.out_features, self.in_features)

    @property
    def weights(self) -> int:
        """Weights without the bias; each is multiplied once per input row."""
        return math.prod(self.factor_shape)

    @property
    def params(self) -> int:
        """Parameters, the bias included."""
        return self.weights + (self.out_features if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugedSpec:
    """A stage with an identity block in its weight, which needs no parameters; see `rankfold.records.gauge_blueprint`.

    The weight of a group is a matrix of ``r`` bond channels by ``size`` other channels. In ``r`` of the latter, the
    pivots, it is the identity. On the side ``"input"`` the bond follows the stage and the pivots are inputs (each at
    one kernel position); on the side ``"output"`` the bond precedes the stage and the pivots are outputs. The factor is
    that of `base`; the pivots are chosen when the stage is built.
    """

    base: ConvSpec | LinearSpec
    side: Literal["input", "output"]

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.base.name

    @property
    def factor_shape(self) -> Size:
        """Shape of the factor, including the part that becomes the identity."""
        return self.base.factor_shape

    @property
    def groups(self) -> int:
        """Groups; 1 for a linear stage."""
        return self.base.groups if isinstance(self.base, ConvSpec) else 1

    @property
    def rank(self) -> int:
        """Channels of the bond in one group: the side of the identity block."""
        out, inn = self.factor_shape[-2:] if isinstance(self.base, LinearSpec) else self.factor_shape[1:3]
        return out if self.side == "input" else inn

    @property
    def size(self) -> int:
        """Number of possible pivots in one group: inputs times kernel positions, or outputs."""
        return math.prod(self.factor_shape) // (self.groups * self.rank)

    @property
    def weights(self) -> int:
        """Weights without the bias: those of `base` minus one identity block per group."""
        return self.base.weights - self.groups * self.rank**2

    @property
    def params(self) -> int:
        """Parameters, the bias included."""
        return self.base.params - self.groups * self.rank**2

    @property
    def indices(self) -> int:
        """Indices of the pivots, 32 bits each."""
        return self.groups * self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshapeSpec:
    """View the input as ``(-1, *tail)``, at no cost."""

    name: str
    tail: Size

    factor_shape = None
    weights = indices = params = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasSpec:
    """Add a bias vector along the last dimension, if the last factor cannot have a bias."""

    name: str
    features: int

    factor_shape = None
    weights = indices = 0

    @property
    def params(self) -> int:
        """One parameter per feature."""
        return self.features


Stage = ConvSpec | LinearSpec | GaugedSpec | ReshapeSpec | BiasSpec


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The stages of a factored layer, in order of execution."""

    stages: tuple[Stage, ...]

    @property
    def params(self) -> int:
        """Parameters of all stages, biases included."""
        return sum(stage.params for stage in self.stages)

    @property
    def indices(self) -> int:
        """Indices of all stages, 32 bits each."""
        return sum(stage.indices for stage in self.stages)

    @property
    def gauged(self) -> tuple[GaugedSpec, ...]:
        """The stages with an identity block."""
        return tuple(stage for stage in self.stages if isinstance(stage, GaugedSpec))

    @property
    def plain(self) -> Blueprint:
        """The blueprint without identity blocks, which has the same factors."""
        return Blueprint(tuple(s.base if isinstance(s, GaugedSpec) else s for s in self.stages))

    @property
    def factor_shapes(self) -> tuple[Size, ...]:
        """Shapes of the factors, in order."""
        return tuple(s.factor_shape for s in self.stages if s.factor_shape is not None)
