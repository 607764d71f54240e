"""Description of one layer, without its weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Self

Ranks = tuple[int, ...]
Size = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The calls of a layer with one input size in one forward pass.

    Parameters
    ----------
    batch : int
        Size of the batch dimension; for a linear layer, the product of all leading dimensions.
    in_size, out_size : tuple of int
        Spatial sizes; empty for a linear layer.
    count : int
        Number of calls with these sizes.
    """

    batch: int
    in_size: Size = ()
    out_size: Size = ()
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One convolution or linear layer: its shape, and how the model uses it.

    The shape of the weight is ``(out_channels, in_channels / groups, *kernel)`` for a convolution, ``(in_channels,
    out_channels / groups, *kernel)`` for a transposed convolution and ``(out_channels, in_channels)`` for a linear
    layer, whose features are called channels. The ``Conv1D`` of transformers is a linear layer.

    Parameters
    ----------
    name : str
        Dotted path in the model; empty if the model is this layer.
    aliases : tuple of str
        Other paths of the same module object.
    ties : tuple of str
        Paths of other layers with the same weight parameter; they share one decision.
    attention : str
        Settings of the attention that the layer is a projection of.
    calls : tuple of Call
        Calls on the example input; empty if there are none, or if the model has not been run.
    input_first : bool
        Whether the module of a linear layer stores its weight as ``(in, out)``, as transformers' ``Conv1D`` does. In
        rankfold, linear weights are always ``(out, in)``.
    skip : str or None
        Why the layer cannot be compressed; None if it can.
    note : str or None
        A remark for the user about a compressible layer.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_channels: int
    out_channels: int
    kernel: Size = ()
    stride: Size = ()
    padding: Size | str = ()
    dilation: Size = ()
    output_padding: Size = ()
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    input_first: bool = False
    bias: bool = False
    dtype: str = "float32"
    type_name: str = ""
    attention: str = ""
    calls: tuple[Call, ...] = ()
    aliases: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()
    skip: str | None = None
    note: str | None = None

    def __deepcopy__(self, memo: object) -> Self:
        """Return the record itself, which is immutable: a copy of `ties` for each tied layer would be quadratic."""
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path of the layer: its name, aliases and ties."""
        return (self.name, *self.aliases, *self.ties)

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def kernel_numel(self) -> int:
        """Product of the kernel sizes; 1 for a linear layer."""
        return math.prod(self.kernel)

    @property
    def weight_shape(self) -> Size:
        """Shape of the weight in torch's layout."""
        if self.kind == "linear":
            return (self.out_channels, self.in_channels)
        if self.transposed:
            return (self.in_channels, self.group_out, *self.kernel)
        return (self.out_channels, self.group_in, *self.kernel)

    @property
    def depthwise(self) -> bool:
        """Whether there are several groups, each with one input channel."""
        return self.kind == "conv" and self.groups > 1 and self.group_in == 1

    def describe(self) -> str:
        """Return a short description, such as ``Conv2d 16->32 3x3 s2 g1``; see `fingerprint` for a complete one."""
        if self.kind == "linear":
            return f"{'Conv1D' if self.input_first else 'Linear'} {self.in_channels}->{self.out_channels}"
        name = f"Conv{'Transpose' if self.transposed else ''}{len(self.kernel)}d"
        words = [name, f"{self.in_channels}->{self.out_channels}", "x".join(map(str, self.kernel))]
        words.append("s" + "x".join(map(str, self.stride[:1] if len(set(self.stride)) == 1 else self.stride)))
        words.append(f"g{self.groups}")
        return " ".join(words)

    @property
    def fingerprint(self) -> str:
        """A complete description: layers with the same fingerprint compute the same function of their parameters.

        Data type, device and training mode are not included.
        """
        words = [self.describe()]
        if self.kind == "conv":
            padding = self._explicit_padding()
            words += [f"padding {_joined(padding)}", f"dilation {_joined(self.dilation)}"]
            if self.padding_mode != "zeros" and (isinstance(padding, str) or any(padding)):
                words.append(f"{self.padding_mode} padded")
            if any(self.output_padding):
                words.append(f"output padding {_joined(self.output_padding)}")
        words.append("bias" if self.bias else "no bias")
        if self.attention:
            words.append(self.attention)
        return ", ".join(words)

    def fingerprint_like(self, other: str) -> str:
        """Return the fingerprint in the form of another one, for comparison.

        Plans of earlier versions contain the shorter text of `describe`.
        """
        return self.fingerprint if ", " in other else self.describe()

    def _explicit_padding(self) -> Size | str:
        """Return symmetric padding as numbers, so that equal functions have equal fingerprints."""
        if self.padding == "valid":
            return (0,) * len(self.kernel)
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        if self.padding == "same" and all(total % 2 == 0 for total in totals):
            return tuple(total // 2 for total in totals)
        return self.padding

    @property
    def left_out(self) -> bool:
        """Whether the layer is compressible, but kept by an option of the user."""
        return self.skip is not None and self.skip.startswith(("excluded by ", "kept"))

    @property
    def title(self) -> str:
        """Name and description of the layer for a message."""
        return f"layer {self.name!r} ({self.describe()})" if self.name else f"the layer ({self.describe()})"

    def static(self) -> LayerInfo:
        """Return the layer without the results of a run (calls, notes)."""
        return replace(self, calls=(), note=None)


def enclosing(path: str) -> Iterable[str]:
    """Return the paths of the modules around a module or layer, from the outermost to its own.

    >>> list(enclosing("encoder.0.fc"))
    ['encoder', 'encoder.0', 'encoder.0.fc']
    """
    return accumulate(path.split("."), "{}.{}".format)


def _joined(sizes: Size | str) -> str:
    return sizes if isinstance(sizes, str) else "x".join(map(str, sizes))
