"""The vectors that a layer's weight is multiplied by: channels at a position, or patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from rankfold.records import LayerInfo


def patch_vectors(x: Tensor, layer: LayerInfo, max_positions: int) -> Tensor:
    """Return the patches that a convolution's kernel sees, from at most `max_positions` output positions per sample.

    The weight reshaped to ``(out, n)`` times a patch is the output at that position, without bias.

    Parameters
    ----------
    x : Tensor
        The layer's input, ``(batch, in, *size)``.
    layer : LayerInfo
        A convolution that is not transposed.
    max_positions : int
        Positions are taken on an even grid.

    Returns
    -------
    Tensor
        ``(groups, n, batch * positions)`` with ``n = in / groups * prod(kernel)``.
    """
    axes = len(layer.kernel)
    x = _padded(x, layer)
    spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, layer.stride, strict=True)]
    for axis, (start, step) in enumerate(even_steps(sizes, max_positions)):
        stride = layer.stride[axis]
        first = start * stride
        x = x.narrow(2 + axis, first, x.shape[2 + axis] - first)
        x = x.unfold(2 + axis, spans[axis], step * stride)[..., :: layer.dilation[axis]]
    # (batch, groups, in / groups, *positions, *kernel); the longest contiguous runs of memory stay together.
    x = x.unflatten(1, (layer.groups, layer.group_in))
    positions, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    n = layer.group_in * layer.kernel_numel
    return x.permute(1, 2, *kernel, 0, *positions).reshape(layer.groups, n, -1)


def channel_vectors(x: Tensor, layer: LayerInfo, max_positions: int) -> Tensor:
    """Return the channels at the positions of a layer's input or output, ``(groups, n / groups, batch * positions)``.

    Parameters
    ----------
    x : Tensor
        ``(batch, n, *size)`` for a convolution, ``(batch, *size, n)`` for a linear layer.
    layer : LayerInfo
        The layer.
    max_positions : int
        The maximum number of positions per sample, on an even grid.
    """
    if layer.kind == "linear":
        x = x.movedim(-1, 1)
    grid = (slice(start, None, step) for start, step in even_steps(x.shape[2:], max_positions))
    x = x[(slice(None), slice(None), *grid)]
    return x.unflatten(1, (layer.groups, -1)).movedim(0, 2).flatten(2)


def data_positions(x: Tensor, data: Tensor, max_positions: int) -> Tensor:
    """Return the positions of a linear layer's input or output that are data, ``(positions, ..., n)``.

    Parameters
    ----------
    x : Tensor
        ``(batch, length, ..., n)``.
    data : Tensor
        True where a position is data, ``(batch, length)``.
    max_positions : int
        The maximum number of positions per sample, on an even grid over data and padding.
    """
    first, *others = (slice(start, None, step) for start, step in even_steps(x.shape[1:-1], max_positions))
    return x[(slice(None), first, *others)][data[:, first]]


def with_batch(x: Tensor, layer: LayerInfo) -> Tensor:
    """Add the batch dimension to a layer's input or output if it is a single sample without one."""
    single = x.ndim == (1 if layer.kind == "linear" else len(layer.kernel) + 1)
    return x.unsqueeze(0) if single else x


def even_steps(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return the start and step of each axis: the finest grid with one step for all axes and at most `most` points."""
    step = 1
    while math.prod(-(-size // step) for size in sizes) > most:
        step += 1
    return [((min(step, size) - 1) // 2 if size else 0, step) for size in sizes]


def _padded(x: Tensor, layer: LayerInfo) -> Tensor:
    """Pad as the convolution does; "same" puts the odd element last."""
    if layer.padding == "valid":
        return x
    if isinstance(layer.padding, str):
        totals = [d * (k - 1) for k, d in zip(layer.kernel, layer.dilation, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(size, size) for size in layer.padding]
    if not any(map(any, pads)):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return pad(x, [p for pair in reversed(pads) for p in pair], mode=mode)
