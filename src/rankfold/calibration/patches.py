"""The vectors that a layer's weight is multiplied with: channels at a position, patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from rankfold.records import LayerInfo


def patch_vectors(x: Tensor, layer: LayerInfo, max_positions: int) -> Tensor:
    """Return every patch that a convolution's kernel sees.

    A row of the weight reshaped to ``(out, n)`` times a patch is the output there, without bias.

    Parameters
    ----------
    x : Tensor
        The layer's input, ``(batch, in, *size)``.
    layer : LayerInfo
        A convolution that is not transposed.
    max_positions : int
        The most output positions taken of each sample, evenly spaced.

    Returns
    -------
    Tensor
        ``(groups, n, batch * positions)`` with ``n = in / groups * prod(kernel)``.
    """
    axes = len(layer.kernel)
    x = _pad(x, layer)
    spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, layer.stride, strict=True)]
    for axis, (start, step) in enumerate(even_steps(sizes, max_positions)):
        stride = layer.stride[axis]
        first = start * stride
        x = x.narrow(2 + axis, first, x.shape[2 + axis] - first)
        x = x.unfold(2 + axis, spans[axis], step * stride)[..., :: layer.dilation[axis]]
    # (batch, groups, in / groups, *positions, *kernel): the longest runs of memory stay together.
    x = x.unflatten(1, (layer.groups, layer.group_in))
    positions, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    n = layer.group_in * layer.kernel_numel
    return x.permute(1, 2, *kernel, 0, *positions).reshape(layer.groups, n, -1)


def channel_vectors(x: Tensor, layer: LayerInfo, max_positions: int) -> Tensor:
    """Return the channels at every input position, ``(groups, in / groups, batch * positions)``.

    Parameters
    ----------
    x : Tensor
        ``(batch, in, *size)`` for a convolution, ``(batch, *size, in)`` for a linear layer.
    layer : LayerInfo
        The layer.
    max_positions : int
        The most positions taken of each sample, evenly spaced.
    """
    if layer.kind == "linear":
        x = x.movedim(-1, 1)
    for axis, (start, step) in enumerate(even_steps(x.shape[2:], max_positions)):
        x = x[(slice(None),) * (2 + axis) + (slice(start, None, step),)]
    x = x.unflatten(1, (layer.groups, layer.group_in))
    return x.movedim(0, 2).reshape(layer.groups, layer.group_in, -1)


def even_steps(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return (start, step) of each axis: the finest grid of one step with at most `most` points."""
    step = 1
    while math.prod(-(-size // step) for size in sizes) > most:
        step += 1
    return [((min(step, size) - 1) // 2 if size else 0, step) for size in sizes]


def _pad(x: Tensor, layer: LayerInfo) -> Tensor:
    """Pad as the convolution would; 'same' puts the odd element last, as torch does."""
    if layer.padding == "valid":
        return x
    pads: list[tuple[int, int]] = []
    for axis, (k, d) in enumerate(zip(layer.kernel, layer.dilation, strict=True)):
        if isinstance(layer.padding, str):
            total = d * (k - 1)
            pads.append((total // 2, total - total // 2))
        else:
            pads.append((layer.padding[axis], layer.padding[axis]))
    if not any(map(any, pads)):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return pad(x, [p for pair in reversed(pads) for p in pair], mode=mode)
