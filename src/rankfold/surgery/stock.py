"""Stock layers without initial values."""

from __future__ import annotations

from functools import cache

from torch import nn

from rankfold.records import ConvSpec, LayerInfo

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def uninitialised(kind: type[nn.Module], **options: object) -> nn.Module:
    """Construct a layer without drawing random numbers: the library never touches the global generator.

    As ``torch.nn.utils.skip_init``, which runs the initialisation on the meta device and takes ten times as long.
    """
    module = _bare(kind)(**options)
    module.__class__ = kind
    return module


@cache
def _bare(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})  # noqa: ARG005 - torch's signature


def stock_layer(info: LayerInfo, *, bias: bool) -> nn.Module:
    """Return the stock layer of these settings on the meta device, to be called with tensors from elsewhere."""
    if info.kind == "linear":
        return uninitialised(
            nn.Linear, in_features=info.in_channels, out_features=info.out_channels, bias=bias, device="meta"
        )
    return uninitialised_conv(info, bias=bias, device="meta")


def uninitialised_conv(settings: ConvSpec | LayerInfo, *, bias: bool, **place: object) -> nn.Module:
    """Return the stock convolution of these settings; `place` is its data type and device."""
    kinds = _TRANSPOSED if settings.transposed else _CONVS
    own = "output_padding" if settings.transposed else "padding_mode"
    return uninitialised(
        kinds[len(settings.kernel)],
        in_channels=settings.in_channels,
        out_channels=settings.out_channels,
        kernel_size=settings.kernel,
        stride=settings.stride,
        padding=settings.padding,
        dilation=settings.dilation,
        groups=settings.groups,
        bias=bias,
        **{own: getattr(settings, own)},
        **place,
    )
