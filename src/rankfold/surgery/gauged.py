"""Gauged stages: an identity block of the weight copies channels instead of storing parameters.

A stock layer holds the rest of the weight. The other operations gather, add and concatenate channels, so gauged stages
compile, export and quantize like any other module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import GaugeError
from rankfold.factor.gauge import Gauge
from rankfold.records import ConvSpec, GaugedSpec, LinearSpec, Size
from rankfold.surgery.composed import guarded
from rankfold.surgery.stock import memory_format, uninitialized


class Gauged(nn.Module):
    """Base class of gauged stages; its parameters are uninitialized.

    Attributes
    ----------
    rest : Module or None
        The stock layer that holds the weight outside of the identity block; None if there is none.
    order : Tensor
        Channel indices (int32, a buffer that is saved with the parameters). On the input side: the channels that are
        copied, then the inputs of `rest`. On the output side: the position of each output among the copied channels
        followed by the outputs of `rest`.
    bias : Parameter or None
        The bias of the whole stage.
    """

    rest: nn.Module | None
    bias: nn.Parameter | None
    order: Tensor
    like: Tensor

    axis: ClassVar[int]
    """Axis of the matrix ``(groups, out, in * kernel)`` along which the identity block and `rest` are joined."""

    def __init__(self, spec: GaugedSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.groups, self.rank, self.size = spec.groups, spec.rank, spec.size
        self.kernel: Size = () if isinstance(spec.base, LinearSpec) else spec.base.kernel
        self.channel = -1 - len(self.kernel)  # counted from the last: there may be no batch dimension
        rest = _rest(spec)
        self.rest = uninitialized(rest, bias=False, dtype=dtype, device=device) if rest.params else None
        size = spec.groups * spec.size
        bias = nn.Parameter(torch.empty(size, dtype=dtype, device=device)) if spec.base.bias else None
        self.register_parameter("bias", bias)
        # Carries the data type and device if no parameter is left.
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_buffer("order", self._first())

    @property
    def weight(self) -> Tensor:
        """The weight of the stage including its identity block, in the stock layer's layout; differentiable.

        Writing to it raises `ComputedWeightError`, because the value would be lost.
        """
        return guarded(self.dense_weight(), "the gauged stage")

    def dense_weight(self) -> Tensor:
        """Return the weight as a plain tensor."""
        parts = [torch.eye(self.rank, dtype=self.like.dtype, device=self.like.device).expand(self.groups, -1, -1)]
        if self.rest is not None:
            parts.append(self.rest.get_parameter("weight").flatten(1).unflatten(0, (self.groups, -1)))
        other = 3 - self.axis
        index = self._index().unsqueeze(other).repeat_interleave(self.rank, other)
        flat = torch.cat(parts, self.axis).gather(self.axis, index).flatten(0, 1)
        return flat.unflatten(1, (-1, *self.kernel)) if self.kernel else flat

    def fill(self, gauge: Gauge) -> None:
        """Set weight and order from a gauge of the weight (transposed, on the input side); call it without grad."""
        if self.rest is not None:
            weight = self.rest.get_parameter("weight")
            weight.copy_((gauge.rest.mT if self.axis == 2 else gauge.rest).reshape(weight.shape))
        self.order.copy_(self.order_of(gauge.pivots, gauge.others))

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return `order` for row indices ``(groups, rank)`` and ``(groups, size - rank)``."""
        raise NotImplementedError

    def is_order(self, order: Tensor) -> bool:
        """Whether a tensor is a valid `order`: every channel of each group once, in the right data type."""
        first = self._first()
        if order.dtype != first.dtype or order.shape != first.shape:
            return False
        ours, theirs = (self._by_group(x).sort(1).values for x in (order.to(first.device), first))
        return torch.equal(ours, theirs)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Raise `GaugeError` for indices that would fail in forward or give other results."""
        order = state_dict.get(f"{prefix}order")
        if isinstance(order, Tensor) and order.shape == self.order.shape and not self.is_order(order):
            raise GaugeError(
                f"{f'{prefix}order'!r} in the state dict must contain every channel once. Load the state "
                "dict of this model, unchanged."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _by_group(self, order: Tensor) -> Tensor:
        """Return the entries of `order` that belong to each group, ``(groups, size)``."""
        raise NotImplementedError

    def _index(self) -> Tensor:
        """Return where the identity block followed by `rest` holds each entry of the weight, ``(groups, size)``."""
        raise NotImplementedError

    def _first(self) -> Tensor:
        """Return the initial `order`, with the first rows as pivots."""
        rows = torch.arange(self.size, device=self.like.device).expand(self.groups, -1)
        return self.order_of(rows[:, : self.rank], rows[:, self.rank :]).to(torch.int32)

    def extra_repr(self) -> str:
        """Show the identity block."""
        return f"identity of {self.rank} in {self.size}" + (f", groups={self.groups}" if self.groups > 1 else "")


class GaugedInput(Gauged):
    """``y = x[pivots] + rest(x[others])``: r inputs, each at a kernel position, are copied to the outputs.

    A kernel becomes a pointwise stage over shifted copies of the (explicitly padded) input, one for each position.
    """

    axis = 2

    def __init__(self, spec: GaugedSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(spec, dtype=dtype, device=device)
        base = spec.base
        self.pointwise = base.pointwise
        if isinstance(base, ConvSpec):
            self.stride, self.dilation = base.stride, base.dilation
            self.pads = _pads(base)
            self.pad_mode = "constant" if base.padding_mode == "zeros" else base.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's output."""
        x = x if self.pointwise else self._shifted(x)
        count = self.groups * self.rank
        if self.rest is None:
            return x if self.pointwise else _select(x, self.channel, self.order)
        out = self.rest(_select(x, self.channel, self.order[count:]))
        return _select(x, self.channel, self.order[:count]).to(out.dtype) + out

    def _shifted(self, x: Tensor) -> Tensor:
        """Return the copies of the input that the kernel positions read, concatenated along the channels."""
        if any(self.pads):
            x = functional.pad(x, self.pads, mode=self.pad_mode)
        copies = []
        for offsets in product(*(range(k) for k in self.kernel)):
            window: list[Any] = [...]
            for axis, offset in enumerate(offsets):
                step, reach = self.stride[axis], self.dilation[axis] * (self.kernel[axis] - 1)
                first = offset * self.dilation[axis]
                last = first + (x.shape[axis - len(self.kernel)] - reach - 1) // step * step
                window.append(slice(first, last + 1, step))
            copies.append(x[tuple(window)])
        return torch.cat(copies, self.channel)

    def _by_group(self, order: Tensor) -> Tensor:
        copied, seen = order.split([self.groups * self.rank, self.groups * (self.size - self.rank)])
        return torch.cat([copied.view(self.groups, -1), seen.view(self.groups, self.size - self.rank)], 1)

    def _index(self) -> Tensor:
        channels = self._by_group(self.order.long())
        taps = math.prod(self.kernel)
        inputs = self.size // taps
        copy, channel = channels // (self.groups * inputs), channels % (self.groups * inputs)
        return (channel % inputs * taps + copy).argsort(1)

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return the channels of the shifted copies that are copied, group by group, then the inputs of `rest`."""
        taps = math.prod(self.kernel)
        inputs = self.size // taps
        group = torch.arange(self.groups, device=pivots.device).unsqueeze(1) * inputs
        parts = [p % taps * (self.groups * inputs) + group + p // taps for p in (pivots, others)]
        return torch.cat([part.flatten() for part in parts])


class GaugedOutput(Gauged):
    """``y = [x, rest(x)]`` in the order of the outputs, plus the bias: r outputs are copies of the inputs."""

    axis = 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's output."""
        if self.rest is not None:
            out = self.rest(x)
            x = _select(torch.cat([x.to(out.dtype), out], self.channel), self.channel, self.order)
        return x if self.bias is None else x + self.bias.to(x.dtype).reshape(-1, *[1] * len(self.kernel))

    def _by_group(self, order: Tensor) -> Tensor:
        return order.view(self.groups, self.size)

    def _index(self) -> Tensor:
        place, count = self._by_group(self.order.long()), self.groups * self.rank
        if self.rest is None:
            return torch.arange(self.size, device=place.device).expand(self.groups, -1)
        group = torch.arange(self.groups, device=place.device).unsqueeze(1)
        computed = place - count - group * (self.size - self.rank) + self.rank
        return torch.where(place < count, place - group * self.rank, computed)

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return the position of each output: the copied channels of all groups come before the outputs of `rest`."""
        copied = torch.arange(pivots.numel(), device=pivots.device).reshape(pivots.shape)
        computed = torch.arange(others.numel(), device=pivots.device).reshape(others.shape) + pivots.numel()
        return torch.cat([copied, computed], 1).gather(1, torch.cat([pivots, others], 1).argsort(1)).flatten()


def _rest(spec: GaugedSpec) -> ConvSpec | LinearSpec:
    """Return the pointwise stage outside of the identity block."""
    left, base = spec.size - spec.rank, spec.base
    inputs, outputs = (left, spec.rank) if spec.side == "input" else (spec.rank, left)
    if isinstance(base, LinearSpec):
        return LinearSpec(name=base.name, in_features=inputs, out_features=outputs)
    ones, groups = (1,) * len(base.kernel), base.groups
    return ConvSpec(
        name=base.name,
        in_channels=inputs * groups,
        out_channels=outputs * groups,
        kernel=ones,
        stride=ones,
        padding=(0,) * len(base.kernel),
        dilation=ones,
        groups=groups,
    )


def _pads(spec: ConvSpec) -> tuple[int, ...]:
    """Return the padding of every side in the order of ``torch.nn.functional.pad``: the last axis first."""
    sides: list[int] = []
    for axis in reversed(range(len(spec.kernel))):
        if spec.padding == "same":  # torch pads an odd total more at the end
            total = spec.dilation[axis] * (spec.kernel[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [0, 0] if isinstance(spec.padding, str) else [spec.padding[axis]] * 2
    return tuple(sides)


def _select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the channels of an index, in the memory format of the input (`index_select` makes it contiguous)."""
    out = x.index_select(dim, index)
    # While torch.fx traces, `x` is a proxy without a memory format.
    return out.to(memory_format=memory_format(x)) if isinstance(x, Tensor) else out
