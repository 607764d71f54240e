"""Operations that some runtimes lack, in terms of others that they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.nn import functional

Triple = Sequence[int]
"""A number for each of the three axes of a volume, or one for all."""


def volumes_as_images(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program that computes its 3-D convolutions as 2-D ones.

    Two neighboring axes along which a kernel has one weight, as in most factors, are merged into one. Otherwise the
    slices along the first axis become images of a batch, with the channels of all slices that the kernel reads. Weights
    are only rearranged. The number of multiplications stays the same, except for the stride of a transposed
    convolution along the first axis.
    """
    aten = torch.ops.aten
    table: dict[Any, Any] = {
        aten.conv3d.default: _conv3d,
        aten.conv3d.padding: _conv3d_padded,
        aten.conv_transpose3d.input: _conv_transpose3d,
    }
    if not any(node.target in table for node in program.graph.nodes):
        return program
    program = program.run_decompositions(table)
    _rearrange_weights(program)
    return program


def cropped_outputs(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program whose 1-D and 2-D transposed convolutions have no padding; their outputs are cropped instead."""
    aten = torch.ops.aten
    table: dict[Any, Any] = {aten.conv_transpose1d.default: _cropped, aten.conv_transpose2d.input: _cropped}
    if not any(node.target in table for node in program.graph.nodes):
        return program
    return program.run_decompositions(table)


def _cropped(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,), groups: int = 1, dilation: Sequence[int] = (1,),
) -> Tensor:  # fmt: skip
    """Transpose a convolution without padding; crop its output, or add zeros to it, and only then the bias."""
    axes = weight.ndim - 2
    stride, padding, output_padding, dilation = (
        tuple(values) * (axes if len(values) == 1 else 1) for values in (stride, padding, output_padding, dilation)
    )
    nothing = (0,) * axes
    y = torch.ops.aten.convolution(x, weight, None, stride, nothing, dilation, True, nothing, groups)
    for axis, before, more in zip(range(-axes, 0), padding, output_padding, strict=True):
        if more > before:
            y = functional.pad(y, (0, 0) * (-1 - axis) + (0, more - before))
        y = y.narrow(axis, before, y.shape[axis] - before - max(before - more, 0))
    return y if bias is None else y + bias.view(-1, *[1] * axes)


def _rearrange_weights(program: torch.export.ExportedProgram) -> None:
    """Compute what the program computes from a single parameter and nothing else, such as its view; change it so."""
    names = program.graph_signature.inputs_to_parameters
    for parameter in [node for node in program.graph.nodes if node.name in names]:
        node, value = parameter, program.state_dict[names[parameter.name]]
        while len(node.users) == 1 and (user := next(iter(node.users))).all_input_nodes == [node]:
            if user.op != "call_function":
                break
            node = user
            args, kwargs = map_arg((node.args, node.kwargs), lambda _, value=value: value)
            value = node.target(*args, **kwargs)
        if node is not parameter:
            parameter.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(parameter)
            program.state_dict[names[parameter.name]] = nn.Parameter(value.detach().contiguous(), requires_grad=False)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Triple = (1,), padding: Triple = (0,),
    dilation: Triple = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    if x.ndim == 4:
        return _conv3d(x[None], weight, bias, stride, padding, dilation, groups)[0]
    stride, padding, dilation = _triple(stride), _triple(padding), _triple(dilation)
    if (at := _mergeable(weight, stride, padding)) is not None:
        two = slice(at, at + 2)
        return functional.conv2d(
            _merged(x, at), _merged(weight, at), bias, stride[two], padding[two], dilation[two], groups
        ).unflatten(3 - at, x.shape[3 - at : 5 - at])
    x = x.transpose(1, 2)
    x = functional.pad(x, (0,) * 6 + (padding[0],) * 2) if padding[0] else x
    count, far = weight.shape[2], dilation[0] * (weight.shape[2] - 1)
    size = (x.shape[1] - far - 1) // stride[0] + 1
    images = _read(x, [tap * dilation[0] for tap in range(count)], size, stride[0])
    flat = functional.conv2d(images, weight.flatten(1, 2), bias, stride[1:], padding[1:], dilation[1:], groups)
    return flat.unflatten(0, (x.shape[0], size)).transpose(1, 2)


def _conv3d_padded(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Triple = (1,), padding: str = "valid",
    dilation: Triple = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    if padding == "same":
        for axis, step in enumerate(_triple(dilation)):
            total = step * (weight.shape[2 + axis] - 1)
            if total:
                x = functional.pad(x, (0, 0) * (2 - axis) + (total // 2, total - total // 2))
    return _conv3d(x, weight, bias, stride, (0,), dilation, groups)


def _conv_transpose3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Triple = (1,), padding: Triple = (0,),
    output_padding: Triple = (0,), groups: int = 1, dilation: Triple = (1,),
) -> Tensor:  # fmt: skip
    """Transpose the convolution of images; along the first axis, convolve a volume with zeros between its slices."""
    if x.ndim == 4:
        return _conv_transpose3d(x[None], weight, bias, stride, padding, output_padding, groups, dilation)[0]
    stride, padding, dilation, extra = _triple(stride), _triple(padding), _triple(dilation), _triple(output_padding)
    if (at := _mergeable(weight, stride, padding, extra)) is not None:
        two = slice(at, at + 2)
        return functional.conv_transpose2d(
            _merged(x, at), _merged(weight, at), bias, stride[two], padding[two], extra[two], groups, dilation[two]
        ).unflatten(3 - at, x.shape[3 - at : 5 - at])
    x = x.transpose(1, 2)
    if stride[0] > 1:
        long = x.shape[1] * stride[0]
        flat = functional.pad(x.flatten(2).unsqueeze(2), (0, 0, 0, stride[0] - 1)).flatten(1, 2)
        x = flat[:, : long - stride[0] + 1].unflatten(2, x.shape[2:])
    count, far = weight.shape[2], dilation[0] * (weight.shape[2] - 1)
    before, after = far - padding[0], far - padding[0] + extra[0]
    if max(before, after) > 0:
        x = functional.pad(x, (0,) * 6 + (max(before, 0), max(after, 0)))
    x = x[:, max(-before, 0) : x.shape[1] - max(-after, 0)]
    size = x.shape[1] - far
    images = _read(x, [far - tap * dilation[0] for tap in range(count)], size, 1)
    weight = weight.transpose(1, 2).flatten(0, 1)
    flat = functional.conv_transpose2d(images, weight, bias, stride[1:], padding[1:], extra[1:], groups, dilation[1:])
    return flat.unflatten(0, (x.shape[0], size)).transpose(1, 2)


def _triple(values: Triple) -> tuple[int, int, int]:
    """Return a number for each axis."""
    first, second, third = values if len(values) == 3 else (*values, *values, *values)
    return first, second, third


def _mergeable(weight: Tensor, stride: Triple, padding: Triple, extra: Triple = (0, 0, 0)) -> int | None:
    """Return 0 if the kernel does not extend along the last two axes, 1 for the first two; otherwise None."""
    plain = [weight.shape[2 + a] == stride[a] == 1 and padding[a] == extra[a] == 0 for a in range(3)]
    return next((at for at in (0, 1) if all(plain[1 - at : 3 - at])), None)


def _merged(x: Tensor, at: int) -> Tensor:
    """Return a volume as an image: its last two axes as one, or its first two (``at=1``)."""
    return x.flatten(3 - at, 4 - at)


def _read(x: Tensor, starts: Sequence[int], size: int, step: int) -> Tensor:
    """Return `size` images of a sequence (N, D, C, H, W) as a batch, each with the channels of one image per start."""
    reads = [x[:, start : start + step * (size - 1) + 1 : step] for start in starts]
    return (reads[0] if len(reads) == 1 else torch.stack(reads, 3).flatten(2, 3)).flatten(0, 1)
