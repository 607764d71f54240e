"""What the convolution methods share: their stages, and which layers they support."""

from __future__ import annotations

from rankfold.methods.contract import DEPTHWISE, Method
from rankfold.records import ConvSpec, LayerInfo


def pointwise(layer: LayerInfo, name: str, in_channels: int, out_channels: int, *, bias: bool = False) -> ConvSpec:
    """Return a 1x1 convolution within the layer's groups; channel numbers are per group."""
    dims = len(layer.kernel)
    return ConvSpec(
        name=name, in_channels=in_channels * layer.groups, out_channels=out_channels * layer.groups,
        kernel=(1,) * dims, stride=(1,) * dims, padding=(0,) * dims, dilation=(1,) * dims, groups=layer.groups,
        bias=bias,
    )  # fmt: skip


def spatial(
    layer: LayerInfo,
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    groups: int | None = None,
    axes: tuple[int, ...] | None = None,
    bias: bool = False,
) -> ConvSpec:
    """Return a convolution with the layer's kernel, stride, padding and dilation along some axes (by default all).

    It is pointwise along the other axes. Channel numbers are totals; `groups` defaults to the layer's.
    """
    dims = len(layer.kernel)
    axes = tuple(range(dims)) if axes is None else axes

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(values[a] if a in axes else neutral for a in range(dims))

    return ConvSpec(
        name=name,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=along(layer.kernel, 1),
        stride=along(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        output_padding=along(layer.output_padding, 0) if layer.transposed else (),
        groups=layer.groups if groups is None else groups,
        padding_mode=layer.padding_mode,
        transposed=layer.transposed,
        bias=bias,
    )


class KernelMethod(Method):
    """A factorization of convolutions with a spatial extent."""

    __slots__ = ()

    def supports(self, layer: LayerInfo) -> str | None:
        """Convolutions of any dimension with a spatial extent."""
        if layer.kind != "conv":
            return "it only supports convolutions"
        if layer.depthwise:
            return DEPTHWISE
        if layer.kernel_numel == 1:
            return "a 1x1 convolution has no spatial extent to factor; use svd or qr"
        return None
