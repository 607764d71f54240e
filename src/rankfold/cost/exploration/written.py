"""Layers as text: ``conv:3x3x512x512``, ``linear:400x120``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from rankfold.errors import ConfigError
from rankfold.records import Call, LayerInfo, Size

SIZE = 14
"""Default input size along each spatial axis."""

HELP = (
    "conv:K1x...xIxO or linear:IxO, optionally followed by ,stride=2 ,padding=1 ,dilation=2 ,groups=4 ,size=28 or ,bias"
)

_NUMBERS = ("stride", "padding", "dilation", "size")


def layer_of(text: str) -> LayerInfo:
    """Return the layer that a text describes; raise `ConfigError` if the text is invalid.

    ``conv:3x512x1024`` is a 1-D, ``conv:3x3x512x512`` a 2-D, ``conv:3x3x3x32x32`` a 3-D convolution: kernel sizes,
    input channels, output channels, in the order of Kokhazadeh et al. (2025). ``linear:400x120`` has 400 inputs and 120
    outputs. The options of a convolution follow after commas: ``stride=2``, ``padding=1`` (by default half of the
    kernel, so that stride 1 preserves the size), ``dilation=1``, ``groups=1`` and ``size=28`` (the input size, by
    default 14), each with one number for all axes or one per axis (``size=28x14``), and ``bias``.
    """
    kind, colon, rest = text.strip().partition(":")
    shape, *settings = rest.split(",")
    sizes = _numbers(shape)
    if not colon or kind not in ("conv", "linear") or sizes is None or 0 in sizes:
        raise _bad(text)
    given: dict[str, Size] = {}
    bias = False
    for setting in settings:
        key, equals, value = setting.strip().partition("=")
        numbers = _numbers(value)
        if key == "bias" and not equals:
            bias = True
        elif kind == "conv" and key in (*_NUMBERS, "groups") and numbers and key not in given:
            given[key] = numbers
        else:
            raise _bad(text, f": {setting.strip()!r}")
    if kind == "linear":
        if len(sizes) != 2:
            raise _bad(text)
        return LayerInfo(
            name=text.strip(), kind="linear", in_channels=sizes[0], out_channels=sizes[1], bias=bias,
            calls=(Call(batch=1),),
        )  # fmt: skip
    return _conv(text.strip(), sizes, given, bias)


def _conv(text: str, sizes: Size, given: dict[str, Size], bias: bool) -> LayerInfo:
    *kernel, inputs, outputs = sizes if len(sizes) >= 3 else (0, 0, 0)
    dims = len(kernel)
    if not 1 <= dims <= 3 or 0 in kernel:
        raise _bad(text, ": a convolution takes one to three kernel sizes, then inputs and outputs")
    given = {"stride": (1,), "dilation": (1,), "size": (SIZE,), "groups": (1,), **given}
    dilation = _each(text, "dilation", given["dilation"], dims)
    half = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    stride = _each(text, "stride", given["stride"], dims)
    padding = _each(text, "padding", given.get("padding", half), dims)
    size = _each(text, "size", given["size"], dims)
    groups = given["groups"]
    if 0 in (*stride, *dilation, *size, *groups) or len(groups) != 1:
        raise _bad(text, ": stride, dilation, groups and size must be at least 1")
    if inputs % groups[0] or outputs % groups[0]:
        raise _bad(text, f": groups={groups[0]} does not divide {inputs} and {outputs} channels")
    layer = LayerInfo(
        name=text, kind="conv", in_channels=inputs, out_channels=outputs, kernel=tuple(kernel), stride=stride,
        padding=padding, dilation=dilation, groups=groups[0], bias=bias,
    )  # fmt: skip
    try:
        out_size = _out_size(layer, size)
    except (RuntimeError, ValueError):  # from torch, if the kernel is larger than the padded input
        sizes_text = "x".join(map(str, size))
        raise _bad(text, f": the kernel does not fit into an input of size {sizes_text}") from None
    return replace(layer, calls=(Call(batch=1, in_size=size, out_size=out_size),))


def _out_size(layer: LayerInfo, size: Size) -> Size:
    """Return the size of the output of torch's convolution of meta tensors."""
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(layer.kernel) - 1]
    weight = torch.empty(layer.weight_shape, device="meta")
    inputs = torch.empty((1, layer.in_channels, *size), device="meta")
    return tuple(convolve(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).shape[2:])


def _numbers(text: str) -> Size | None:
    parts = text.split("x")
    return tuple(int(p) for p in parts) if all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts) else None


def _each(text: str, key: str, numbers: Size, dims: int) -> Size:
    if len(numbers) not in (1, dims):
        raise _bad(text, f": {key} takes one number, or {dims} joined by x")
    return numbers * dims if len(numbers) == 1 else numbers


def _bad(text: str, what: str = "") -> ConfigError:
    return ConfigError(f"a layer must be written as {HELP}. Got {text!r} instead{what}.")
