"""The layer zoo: every kind of layer that a method may meet, small enough to check in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SEED = 20
"""The seed of all weights and inputs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerCase:
    """One configuration of a layer, and an input for it.

    Parameters
    ----------
    id : str
        A name, unique in the zoo.
    kind : type
        The layer's class.
    options : mapping
        Arguments of the constructor.
    input_shape : tuple of int
        Shape of the input.
    dtype : torch.dtype
        Data type of weight and input.
    channels_last : bool
        Whether layer and input are in the channels-last memory format.
    thorough : bool
        Whether to run the slow checks (compiling, exporting; about a second each) on this layer as well.
    """

    id: str
    kind: type[nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    thorough: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of layer and input."""
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if len(self.input_shape) == 4 else torch.channels_last_3d

    def layer(self) -> nn.Module:
        """Return the layer; its weights are the same on every call, and no global generator is touched."""
        generator = torch.Generator().manual_seed(SEED)
        with torch.random.fork_rng(devices=[]):  # four times as fast as `torch.nn.utils.skip_init`
            module = self.kind(dtype=torch.float64, **self.options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(generator=generator)
        return module.to(self.dtype).to(memory_format=self.memory_format)

    def input(self) -> Tensor:
        """Return the input, the same on every call."""
        generator = torch.Generator().manual_seed(SEED + 1)
        values = torch.randn(self.input_shape, generator=generator, dtype=torch.float64)
        return values.to(dtype=self.dtype, memory_format=self.memory_format)


def _conv(
    id: str,
    channels: tuple[int, int],
    kernel: int | tuple[int, ...],
    *,
    dims: int = 2,
    size: tuple[int, ...] | None = None,
    batch: int | None = 2,
    transposed: bool = False,
    **options: Any,
) -> LayerCase:
    case = {name: options.pop(name) for name in ("dtype", "channels_last", "thorough") if name in options}
    spatial = size or {1: (11,), 2: (8, 7), 3: (6, 5, 4)}[dims]
    return LayerCase(
        id=id,
        kind=getattr(nn, f"{'ConvTranspose' if transposed else 'Conv'}{dims}d"),
        options={"in_channels": channels[0], "out_channels": channels[1], "kernel_size": kernel, **options},
        input_shape=(*(() if batch is None else (batch,)), channels[0], *spatial),
        **case,
    )


def _linear(
    id: str, features: tuple[int, int], *, leading: tuple[int, ...] = (3,), bias: bool = True, **case: Any
) -> LayerCase:
    options = {"in_features": features[0], "out_features": features[1], "bias": bias}
    return LayerCase(id=id, kind=nn.Linear, options=options, input_shape=(*leading, features[0]), **case)


LAYER_ZOO = (
    # One dimension.
    _conv("conv1d", (6, 5), 3, dims=1),
    _conv("conv1d-stride-padding", (6, 8), 5, dims=1, stride=2, padding=2),
    _conv("conv1d-dilation-same", (5, 6), 3, dims=1, dilation=2, padding="same"),
    _conv("conv1d-even-same", (5, 6), 4, dims=1, padding="same"),
    _conv("conv1d-circular", (4, 6), 3, dims=1, padding=1, padding_mode="circular", bias=False),
    _conv("conv1d-groups", (6, 8), 3, dims=1, groups=2, padding=1),
    _conv("conv1d-1", (6, 7), 1, dims=1),
    _conv("conv1d-no-batch", (6, 5), 3, dims=1, batch=None),
    _conv("conv1d-transposed", (6, 4), 4, dims=1, transposed=True, stride=2, padding=1),
    # Two dimensions: the common ones.
    _conv("conv2d", (6, 8), 3, padding=1, thorough=True),
    _conv("conv2d-no-bias", (8, 6), 3, padding=1, bias=False),
    _conv("conv2d-stride", (6, 8), 3, padding=1, stride=2),
    _conv("conv2d-stride-uneven", (6, 8), 3, padding=(0, 2), stride=(1, 3)),
    _conv("conv2d-stem", (3, 8), 7, padding=3, stride=4, size=(12, 13)),
    _conv("conv2d-valid", (6, 8), 3, padding="valid"),
    _conv("conv2d-same", (6, 8), 3, padding="same"),
    _conv("conv2d-same-even-dilation", (6, 8), (2, 4), padding="same", dilation=(3, 1)),
    # Padding modes.
    _conv("conv2d-circular", (6, 8), 3, padding=1, padding_mode="circular"),
    _conv("conv2d-reflect", (6, 8), 3, padding=(1, 2), padding_mode="reflect"),
    _conv("conv2d-replicate", (6, 8), 3, padding=2, padding_mode="replicate", stride=2),
    _conv("conv2d-circular-same", (6, 8), (3, 5), padding="same", padding_mode="circular"),
    # Kernels and dilation.
    _conv("conv2d-dilation", (6, 8), 3, dilation=2, padding=2),
    _conv("conv2d-dilation-uneven", (6, 8), 3, dilation=(1, 3), padding=(1, 3)),
    _conv("conv2d-5x3", (6, 8), (5, 3), padding=(2, 1)),
    _conv("conv2d-3x1", (6, 8), (3, 1), padding=(1, 0), stride=(2, 1)),
    _conv("conv2d-2x2", (6, 8), 2, stride=2),
    _conv("conv2d-4x4", (6, 8), 4, padding=1),
    _conv("conv2d-1x1", (6, 8), 1, thorough=True),
    _conv("conv2d-1x1-stride", (8, 6), 1, stride=2, bias=False),
    _conv("conv2d-1x1-padding", (8, 6), 1, padding=1),
    # Channels and groups.
    _conv("conv2d-groups", (8, 12), 3, groups=2, padding=1),
    _conv("conv2d-groups-4", (12, 8), 3, groups=4, stride=2),
    _conv("conv2d-groups-1x1", (8, 12), 1, groups=2),
    _conv("conv2d-depthwise", (6, 6), 3, groups=6, padding=1),
    _conv("conv2d-depthwise-multiplier", (4, 12), 3, groups=4),
    _conv("conv2d-one-input", (1, 8), 3, padding=1),
    _conv("conv2d-one-output", (8, 1), 3, padding=1),
    _conv("conv2d-one-one", (1, 1), 3),
    _conv("conv2d-wide", (16, 3), 3),
    _conv("conv2d-tall", (2, 40), 3),
    # Data types, memory formats and batches.
    _conv("conv2d-float64", (6, 8), 3, padding=1, dtype=torch.float64),
    _conv("conv2d-float16", (6, 8), 3, padding=1, dtype=torch.float16),
    _conv("conv2d-bfloat16", (6, 8), 3, padding=1, dtype=torch.bfloat16),
    _conv("conv2d-channels-last", (6, 8), 3, padding=1, channels_last=True),
    _conv("conv2d-channels-last-bfloat16", (6, 8), 3, stride=2, dtype=torch.bfloat16, channels_last=True),
    _conv("conv2d-1x1-channels-last", (6, 8), 1, channels_last=True),
    _conv("conv2d-no-batch", (6, 8), 3, batch=None),
    _conv("conv2d-empty-batch", (6, 8), 3, batch=0),
    # Transposed.
    _conv("conv2d-transposed", (8, 6), 3, transposed=True, stride=2, padding=1, output_padding=1, thorough=True),
    _conv("conv2d-transposed-2x2", (8, 6), 2, transposed=True, stride=2, bias=False),
    _conv("conv2d-transposed-uneven", (8, 6), (4, 3), transposed=True, stride=(2, 1), padding=(1, 0)),
    _conv("conv2d-transposed-dilation", (4, 6), 3, transposed=True, dilation=(1, 2), padding=1),
    _conv("conv2d-transposed-groups", (8, 12), 3, transposed=True, groups=2, stride=2),
    _conv("conv2d-transposed-1x1", (8, 6), 1, transposed=True),
    _conv("conv2d-transposed-float64", (6, 8), 3, transposed=True, stride=3, dtype=torch.float64),
    # Three dimensions.
    _conv("conv3d", (4, 6), 3, dims=3, padding=1, thorough=True),
    _conv("conv3d-stride", (4, 6), (3, 2, 3), dims=3, stride=(2, 1, 1)),
    _conv("conv3d-1x3x3", (4, 6), (1, 3, 3), dims=3, padding=(0, 1, 1), bias=False),
    _conv("conv3d-replicate", (4, 6), 3, dims=3, padding=1, padding_mode="replicate"),
    _conv("conv3d-groups", (4, 8), 3, dims=3, groups=2, padding="same"),
    _conv("conv3d-1", (6, 4), 1, dims=3),
    _conv("conv3d-channels-last", (4, 6), 3, dims=3, channels_last=True),
    _conv("conv3d-transposed", (6, 4), 2, dims=3, transposed=True, stride=2),
    # Linear layers.
    _linear("linear", (12, 10), thorough=True),
    _linear("linear-no-bias", (10, 12), bias=False),
    _linear("linear-no-leading", (12, 10), leading=()),
    _linear("linear-leading-2", (12, 10), leading=(2, 5), thorough=True),
    _linear("linear-leading-3", (12, 10), leading=(2, 3, 4)),
    _linear("linear-empty-batch", (12, 10), leading=(0,)),
    _linear("linear-wide", (30, 4)),
    _linear("linear-tall", (4, 30)),
    _linear("linear-one-input", (1, 8)),
    _linear("linear-one-output", (8, 1)),
    _linear("linear-primes", (13, 7)),
    _linear("linear-prime-output", (12, 7)),
    _linear("linear-float64", (12, 10), dtype=torch.float64),
    _linear("linear-float16", (12, 10), dtype=torch.float16),
    _linear("linear-bfloat16", (12, 10), dtype=torch.bfloat16),
)
"""Every configuration.

Convolutions of one, two and three dimensions, transposed ones and linear layers; stride, padding (numbers, ``"same"``,
``"valid"``), padding modes, dilation, groups, bias, kernels that are even, non-square or 1x1, one input or output
channel, data types, channels-last memory, inputs without a batch dimension or with an empty one.
"""
