"""Blueprints: what a factored layer is made of, without any weight.

A method states its blueprint once; ``cost`` counts any blueprint and ``surgery`` builds any blueprint, so the cost of
a candidate equals the cost of the module by construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankfold.records.layer import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """One stock convolution.

    Its factor is handed over in canonical form, ``(groups, out_channels / groups, in_channels / groups, *kernel)``,
    transposed or not.
    """

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

    @property
    def factor_shape(self) -> Size:
        """Canonical shape of the factor that fills this stage."""
        return (self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel)

    @property
    def params(self) -> int:
        """Parameters, the bias included."""
        return math.prod(self.factor_shape) + (self.out_channels if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One stock linear layer; its factor is ``(out_features, in_features)``."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def factor_shape(self) -> Size:
        """Shape of the factor that fills this stage."""
        return (self.out_features, self.in_features)

    @property
    def params(self) -> int:
        """Parameters, the bias included."""
        return math.prod(self.factor_shape) + (self.out_features if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshapeSpec:
    """View the stage's input as ``(-1, *tail)``; no cost."""

    name: str
    tail: Size

    factor_shape = None
    params = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasSpec:
    """Add a bias vector along the last dimension, where the last factor cannot carry it."""

    name: str
    features: int

    factor_shape = None

    @property
    def params(self) -> int:
        """Parameters: one per feature."""
        return self.features


Stage = ConvSpec | LinearSpec | ReshapeSpec | BiasSpec


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The stages of a factored layer, in order of execution."""

    stages: tuple[Stage, ...]

    @property
    def params(self) -> int:
        """Parameters of all stages, biases included."""
        return sum(stage.params for stage in self.stages)

    @property
    def factor_shapes(self) -> tuple[Size, ...]:
        """Shapes of the factors that fill the blueprint, in order."""
        return tuple(s.factor_shape for s in self.stages if s.factor_shape is not None)
