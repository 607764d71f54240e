"""The layers that are measured, their weights and their ranks: all deterministic."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.methods import Method
from rankfold.records import LayerInfo, Ranks

REDUCTIONS = (0.85, 0.60, 0.25)
"""Shares of the layer's parameters that are to go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One layer: input and output channels, and the kernel (empty for a linear layer)."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    source: str

    @property
    def name(self) -> str:
        """The shape as the similarity paper writes it: kernel, inputs, outputs."""
        return "x".join(map(str, (*self.kernel, self.inputs, self.outputs)))

    @property
    def layer(self) -> LayerInfo:
        """The layer as the methods see it."""
        ones = (1,) * len(self.kernel)
        return LayerInfo(
            name=self.name,
            kind="conv" if self.kernel else "linear",
            in_channels=self.inputs,
            out_channels=self.outputs,
            kernel=self.kernel,
            stride=ones,
            padding=tuple(k // 2 for k in self.kernel),
            dilation=ones,
        )


PAPER = "Kokhazadeh et al. (2025), tables 2-5"
RESNET = "ResNet-18"

SHAPES = (
    Shape(kernel=(3,), inputs=512, outputs=1024, source=PAPER),
    Shape(kernel=(3, 3), inputs=256, outputs=512, source=f"{PAPER}; {RESNET}"),
    Shape(kernel=(3, 3), inputs=512, outputs=512, source=f"{PAPER}; {RESNET}"),
    Shape(kernel=(5, 5), inputs=96, outputs=256, source=PAPER),
    Shape(kernel=(3, 3), inputs=384, outputs=256, source=PAPER),
    Shape(kernel=(3, 3, 3), inputs=32, outputs=32, source=PAPER),
    Shape(inputs=400, outputs=120, source=PAPER),
    Shape(inputs=512, outputs=512, source=PAPER),
    Shape(inputs=512, outputs=256, source=PAPER),
    Shape(kernel=(7, 7), inputs=3, outputs=64, source=RESNET),
    Shape(kernel=(3, 3), inputs=64, outputs=64, source=RESNET),
    Shape(kernel=(3, 3), inputs=64, outputs=128, source=RESNET),
    Shape(kernel=(3, 3), inputs=128, outputs=128, source=RESNET),
    Shape(kernel=(3, 3), inputs=128, outputs=256, source=RESNET),
    Shape(kernel=(3, 3), inputs=256, outputs=256, source=RESNET),
    Shape(kernel=(1, 1), inputs=64, outputs=128, source=RESNET),
    Shape(kernel=(1, 1), inputs=128, outputs=256, source=RESNET),
    Shape(kernel=(1, 1), inputs=256, outputs=512, source=RESNET),
)
"""Every conv and linear layer of the paper's tables 2-5, and every conv shape of ResNet-18, once each."""

WEIGHTS = ("gaussian", "decaying")
"""Kinds of weights: noise, which no method compresses well, and one with spectra that fall as trained ones do."""


def weight(shape: Shape, kind: str, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a seeded weight in torch's layout; the same for every data type but for rounding.

    ``"decaying"`` multiplies both channel modes of the noise by symmetric matrices whose eigenvalues are
    ``1 / sqrt(j)``, so the modes' singular values fall about like those of a trained layer.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shape.name} {kind} {seed}".encode()))
    tensor = torch.randn(shape.layer.weight_shape, generator=generator, dtype=torch.float64)
    if kind == "decaying":
        for mode in (0, 1):
            n = tensor.shape[mode]
            basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
            root = (basis / torch.arange(1, n + 1, dtype=torch.float64).sqrt()) @ basis.mT
            tensor = (tensor.movedim(mode, -1) @ root).movedim(-1, mode)
    return (tensor / tensor.square().mean().sqrt() / math.sqrt(tensor[0].numel())).to(dtype).contiguous()


def ranks_for(method: Method, layer: LayerInfo, reduction: float, *, equal: bool = False) -> Ranks:
    """Return the largest ranks that remove at least this share of the parameters.

    All ranks are the same share of their limits; with `equal` they are the same number, limits permitting.
    If even ranks of 1 are too many, they are returned.
    """
    limits = method.max_ranks(layer)
    dense = math.prod(layer.weight_shape)

    def at(step: int) -> Ranks:
        if equal:
            return tuple(min(step, limit) for limit in limits)
        return tuple(max(1, limit * step // max(limits)) for limit in limits)

    low, high = 1, max(limits) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if method.blueprint(layer, at(middle)).params <= (1 - reduction) * dense:
            low = middle
        else:
            high = middle
    return at(low)
