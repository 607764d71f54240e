"""Gauged stages: an identity block in the weight is a copy of channels instead of parameters.

Made of a stock layer for what is left of the weight, and of gathering, adding and joining channels, so that they
compile, export and quantise like any other module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import GaugeError
from rankfold.factor.gauge import Gauge
from rankfold.records import ConvSpec, GaugedSpec, LinearSpec, Size
from rankfold.surgery.composed import guarded
from rankfold.surgery.stock import uninitialised

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Gauged(nn.Module):
    """What gauged stages share.

    Parameters
    ----------
    spec : GaugedSpec
        The stage.
    dtype, device : torch.dtype, torch.device
        Of the parameters, which are left uninitialised.

    Attributes
    ----------
    rest : Module or None
        The stock layer that holds what is not the identity; None if nothing is left.
    order : Tensor
        Where channels come from (int32, a buffer that is saved with the parameters): for pivots on the input side
        those that are copied, then those that `rest` sees; on the output side the place of each output among the
        copied channels followed by those of `rest`.
    bias : Parameter or None
        The bias of the whole stage.
    """

    rest: nn.Module | None
    bias: nn.Parameter | None
    order: Tensor
    like: Tensor

    def __init__(self, spec: GaugedSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        base = spec.base
        self.linear = isinstance(base, LinearSpec)
        self.dims = 0 if isinstance(base, LinearSpec) else len(base.kernel)
        self.groups, self.rank, self.size = spec.groups, spec.rank, spec.size
        self.kernel: Size = () if isinstance(base, LinearSpec) else base.kernel
        left = spec.size - spec.rank
        inn, out = (left, spec.rank) if spec.side == "input" else (spec.rank, left)
        self.rest = _pointwise(inn, out, spec.groups, self.dims, dtype, device) if left else None
        bias = nn.Parameter(torch.empty(spec.groups * spec.size, dtype=dtype, device=device)) if base.bias else None
        self.register_parameter("bias", bias)
        # What tells the data type where no parameter is left.
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_buffer("order", self._first())

    @property
    def channel(self) -> int:
        """The dimension of the channels, counted from the last: with or without a batch dimension."""
        return -1 - self.dims

    @property
    def weight(self) -> Tensor:
        """The weight of the stage with its identity block, as the stock layer would hold it; differentiable.

        Writing to it raises `ComputedWeightError`, for it would be lost.
        """
        return guarded(self.dense_weight(), "the gauged stage")

    def dense_weight(self) -> Tensor:
        """Return the weight as a tensor that may be written to."""
        raise NotImplementedError

    def fill(self, made: Gauge) -> None:
        """Set weight and order from a gauge of the weight (transposed, on the input side); call it without grad."""
        rest = made.rest.mT if isinstance(self, GaugedInput) else made.rest
        if self.rest is not None:
            weight = self.rest.get_parameter("weight")
            weight.copy_(rest.reshape(weight.shape))
        self.order.copy_(self.order_of(made.pivots, made.others))

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return `order` for row indices ``(groups, rank)`` and ``(groups, size - rank)``."""
        raise NotImplementedError

    def is_order(self, order: Tensor) -> bool:
        """Whether a tensor can be `order`: of its data type, and in each group every channel of the group once."""
        first = self._first()
        if order.dtype != first.dtype or order.shape != first.shape:
            return False
        ours, theirs = (self._by_group(x).sort(1).values for x in (order.to(first.device), first))
        return torch.equal(ours, theirs)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse indices that would fail in forward, or compute something else."""
        order = state_dict.get(f"{prefix}order")
        if isinstance(order, Tensor) and order.shape == self.order.shape and not self.is_order(order):
            raise GaugeError(f"the state dict holds {f'{prefix}order'!r}, which does not name every channel once.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _by_group(self, order: Tensor) -> Tensor:
        """Return the entries of `order` that belong to each group, ``(groups, size)``."""
        raise NotImplementedError

    def _first(self) -> Tensor:
        """Return `order` with the first rows as pivots, which a module has until it is filled or loaded."""
        rows = torch.arange(self.size, device=self.like.device).expand(self.groups, -1)
        return self.order_of(rows[:, : self.rank], rows[:, self.rank :]).to(torch.int32)

    def _identity(self) -> Tensor:
        """Return one identity block a group, of the data type and device of the other weights."""
        return torch.eye(self.rank, dtype=self.like.dtype, device=self.like.device).expand(self.groups, -1, -1)

    def _shaped(self, weight: Tensor) -> Tensor:
        """Return a canonical matrix ``(groups, out, in * kernel)`` in the layout of the stock layer."""
        flat = weight.flatten(0, 1)
        return flat if self.linear else flat.unflatten(1, (-1, *self.kernel))

    def extra_repr(self) -> str:
        """Show the identity block."""
        return f"identity of {self.rank} in {self.size}" + (f", groups={self.groups}" if self.groups > 1 else "")


class GaugedInput(Gauged):
    """``y = x[pivots] + rest(x[others])``: r inputs (at a kernel position each) become the outputs, and the rest adds.

    A kernel is handled as a pointwise stage over the shifted copies of its (explicitly padded) input, of which
    there is one for each position.
    """

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
        """Return the copies of the input that the kernel positions see, one after the other along the channels."""
        if any(self.pads):
            x = functional.pad(x, self.pads, mode=self.pad_mode)
        copies = []
        for offsets in product(*(range(k) for k in self.kernel)):
            window: list[Any] = [...]
            for axis, offset in enumerate(offsets):
                step, reach = self.stride[axis], self.dilation[axis] * (self.kernel[axis] - 1)
                first = offset * self.dilation[axis]
                last = first + (x.shape[axis - self.dims] - reach - 1) // step * step
                window.append(slice(first, last + 1, step))
            copies.append(x[tuple(window)])
        return torch.cat(copies, self.channel)

    def dense_weight(self) -> Tensor:
        """Return the weight with its identity block, composed."""
        identity = self._identity()
        parts = [identity] if self.rest is None else [identity, self._rest(identity)]
        count = self.groups * self.rank
        places = self._places(self.order.long())
        index = torch.cat([places[:count].view(self.groups, -1), places[count:].view(self.groups, -1)], 1)
        whole = torch.cat(parts, 2).gather(2, index.argsort(1).unsqueeze(1).expand(-1, self.rank, -1))
        return self._shaped(whole)

    def _by_group(self, order: Tensor) -> Tensor:
        copied, seen = order.split([self.groups * self.rank, self.groups * (self.size - self.rank)])
        return torch.cat([copied.view(self.groups, -1), seen.view(self.groups, self.size - self.rank)], 1)

    def _rest(self, identity: Tensor) -> Tensor:
        assert self.rest is not None
        return self.rest.get_parameter("weight").reshape(*identity.shape[:2], -1)

    def _places(self, channels: Tensor) -> Tensor:
        """Return the index of each channel of the shifted copies in its group's flattened (inputs, kernel)."""
        taps = math.prod(self.kernel)
        inputs = self.size // taps
        copy, channel = channels // (self.groups * inputs), channels % (self.groups * inputs)
        return channel % inputs * taps + copy

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return the channels of the shifted copies that are copied, group by group, then those that `rest` sees."""
        taps = math.prod(self.kernel)
        inputs = self.size // taps
        group = torch.arange(self.groups, device=pivots.device).unsqueeze(1) * inputs
        parts = [p % taps * (self.groups * inputs) + group + p // taps for p in (pivots, others)]
        return torch.cat([part.flatten() for part in parts])


class GaugedOutput(Gauged):
    """``y = [x, rest(x)]`` in the order of the outputs, plus the bias: r outputs are the inputs as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's output."""
        if self.rest is not None:
            out = self.rest(x)
            x = _select(torch.cat([x.to(out.dtype), out], self.channel), self.channel, self.order)
        return x if self.bias is None else x + self.bias.to(x.dtype).reshape(-1, *[1] * self.dims)

    def dense_weight(self) -> Tensor:
        """Return the weight with its identity block, composed."""
        identity, count = self._identity(), self.groups * self.rank
        if self.rest is None:
            return self._shaped(identity)
        rest = self.rest.get_parameter("weight").reshape(self.groups, -1, self.rank)
        place = self.order.long().view(self.groups, self.size)
        group = torch.arange(self.groups, device=place.device).unsqueeze(1)
        copied, computed = place - group * self.rank, place - count - group * rest.shape[1] + self.rank
        index = torch.where(place < count, copied, computed)
        return self._shaped(torch.cat([identity, rest], 1).gather(1, index.unsqueeze(2).expand(-1, -1, self.rank)))

    def _by_group(self, order: Tensor) -> Tensor:
        return order.view(self.groups, self.size)

    def order_of(self, pivots: Tensor, others: Tensor) -> Tensor:
        """Return the place of each output: all copied channels, group by group, come before all of `rest`."""
        copied = torch.arange(pivots.numel(), device=pivots.device).reshape(pivots.shape)
        computed = torch.arange(others.numel(), device=pivots.device).reshape(others.shape) + pivots.numel()
        return torch.cat([copied, computed], 1).gather(1, torch.cat([pivots, others], 1).argsort(1)).flatten()


def _pointwise(inn: int, out: int, groups: int, dims: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a stock layer without kernel or bias; `inn` and `out` are those of a group."""
    options: dict[str, object] = {"bias": False, "dtype": dtype, "device": device}
    if dims == 0:
        return uninitialised(nn.Linear, in_features=inn, out_features=out, **options)
    channels = {"in_channels": inn * groups, "out_channels": out * groups, "groups": groups}
    return uninitialised(_CONVS[dims], kernel_size=1, **channels, **options)


def _pads(spec: ConvSpec) -> tuple[int, ...]:
    """Return the padding of every side as ``torch.nn.functional.pad`` takes it: the last axis first."""
    sides: list[int] = []
    for axis in reversed(range(len(spec.kernel))):
        if spec.padding == "same":  # as torch splits it: the odd one at the end
            total = spec.dilation[axis] * (spec.kernel[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [0, 0] if isinstance(spec.padding, str) else [spec.padding[axis]] * 2
    return tuple(sides)


def _select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the channels of an index, in the memory format of the input (`index_select` makes it contiguous)."""
    out = x.index_select(dim, index)
    last = _LAST.get(x.ndim) if isinstance(x, Tensor) else None  # a proxy, while torch.fx traces, has no format
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        out = out.contiguous(memory_format=last)
    return out
