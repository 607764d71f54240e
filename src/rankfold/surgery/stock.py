"""Stock layers without initial values."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from rankfold.inventory.kinds import CONVS, TRANSPOSED
from rankfold.records import ConvSpec, LayerInfo, LinearSpec


def uninitialized(settings: ConvSpec | LinearSpec | LayerInfo, *, bias: bool, **options: object) -> nn.Module:
    """Return the stock layer with these settings without drawing random numbers; `options` are dtype and device.

    ``torch.nn.utils.skip_init`` runs the initialization on the meta device, which takes ten times as long.
    """
    if isinstance(settings, LinearSpec):
        kind, sizes = nn.Linear, {"in_features": settings.in_features, "out_features": settings.out_features}
    elif isinstance(settings, LayerInfo) and settings.kind == "linear":
        kind, sizes = nn.Linear, {"in_features": settings.in_channels, "out_features": settings.out_channels}
    else:
        kind = (TRANSPOSED if settings.transposed else CONVS)[len(settings.kernel) - 1]
        own = "output_padding" if settings.transposed else "padding_mode"
        names = ("in_channels", "out_channels", "stride", "padding", "dilation", "groups", own)
        sizes = {"kernel_size": settings.kernel, **{name: getattr(settings, name) for name in names}}
    module = _bare(kind)(bias=bias, **sizes, **options)
    module.__class__ = kind
    return module


@cache
def _bare(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})  # noqa: ARG005 - torch's signature


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return channels-last if a tensor is stored that way and not contiguous, else ``torch.preserve_format``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
        return last
    return torch.preserve_format
