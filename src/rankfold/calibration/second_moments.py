"""Second moments of every layer's input, collected in one pass over the data.

The second moment of an input x is the matrix ``E[x x^T]``: which channels of the input are large, and which vary
together. It tells a factorization which directions of a weight matter on the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from rankfold._config import require
from rankfold._printable import few
from rankfold.calibration.gram import GramSum
from rankfold.calibration.patches import channel_vectors, data_positions, patch_vectors, with_batch
from rankfold.errors import RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.inventory import Padding, find_layer, model_inputs, run_batch, undisturbed
from rankfold.inventory.kinds import ROLES
from rankfold.records import LayerInfo


class LayerMoments(dict[str, Moments]):
    """Second moments by layer name.

    Attributes
    ----------
    unreached : tuple of str
        Layers that no sample reaches, or whose input is always the same: the data says nothing about them.
    padded : tuple of str
        Layers whose inputs do not have the dimensions of the padding mask, so that padded positions count as data.
    """

    unreached: tuple[str, ...] = ()
    padded: tuple[str, ...] = ()


def collect_moments(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerInfo],
    *,
    max_patch: int = 2304,
    memory_limit: int = 2 * 2**30,
    max_positions: int = 1024,
) -> LayerMoments:
    """Return the second moments of the inputs of some layers, in one pass over the data.

    The model runs in evaluation mode without gradients and starts every batch in the same state; afterwards it and the
    random states are as before. If a layer shares its weight (`LayerInfo.ties`) or is called several times, its
    moments cover all inputs that the weight is applied to. Layers that no sample reaches, and those whose inputs are
    all zero, get no entry and are named in a warning; they are factored by their weights alone. If the model's inputs
    have a padding mask (`rankfold.inventory.Padding`), padded positions are left out of the inputs of linear layers
    that have its batch and sequence dimensions. The output projection
    of an ``nn.MultiheadAttention`` gets no entry either, because its input is not visible from outside.

    Parameters
    ----------
    model : Module
        The model, on the device where it is to run.
    batches : iterable
        Batches with or without targets (`rankfold.batches`); targets are ignored.
    layers : sequence of LayerInfo
        The layers, from an inventory of this model.
    max_patch : int
        The patch moment is collected for kernels larger than 1 if its size ``n = in / groups * prod(kernel)`` is at
        most this. The default is the size for 256 channels and a 3x3 kernel.
    memory_limit : int
        Bytes of all moments together. If they need more, patch moments are left out, the largest first, then whole
        layers, with a warning.
    max_positions : int
        The maximum number of positions per sample, on an even grid. The default takes all positions of a 32x32 feature
        map, and at least 784 of any larger square one.

    Returns
    -------
    LayerMoments
        A dict by layer name, in float64; the relative error is below 1e-5 for float32 activations.

    Raises
    ------
    DataError
        If there is no batch, or a layer's input contains NaN or infinity.
    NoMatchingLayer
        If the model has no such layer.
    """
    require(max_patch >= 0, "max_patch", max_patch, "at least 0")
    require(memory_limit > 0, "memory_limit", memory_limit, "a number of bytes above 0")
    require(max_positions > 0, "max_positions", max_positions, "at least 1")
    sums = _allocate(layers, max_patch, memory_limit, max_positions)
    with undisturbed(model) as reset, ExitStack() as hooks:
        for layer_sums in sums:
            for module, hook in _hooks(model, layer_sums):
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
        data = model_inputs(model, batches, "calibration", "collecting second moments")
        for number, (inputs, _) in enumerate(data, 1):
            padding = Padding.of(model, inputs)
            for layer_sums in sums:
                layer_sums.padding = padding
            run_batch(model, inputs, f"calibration batch {number}", example=getattr(batches, "example", None))
            reset()
    averages = {s.layer.name: s.moments() for s in sums}
    collected = LayerMoments({name: moments for name, moments in averages.items() if moments is not None})
    collected.padded = tuple(s.layer.name for s in sums if s.padded)
    collected.unreached = tuple(s.layer.name for s in sums if s.saw_nothing(averages[s.layer.name]))
    if collected.unreached:
        warnings.warn(
            f"no calibration sample reaches {few(collected.unreached)} (never called, or the input is always the "
            "same): errors and factors are computed from the weights alone. Use data that reaches these layers, or "
            "exclude them to keep them dense.",
            RankfoldWarning,
            stacklevel=2,
        )
    return collected


class LayerSums:
    """The accumulated sums of one layer; without `with_channel`, only whether it has any input."""

    def __init__(self, layer: LayerInfo, *, with_channel: bool, with_patch: bool, max_positions: int) -> None:
        self.layer = layer
        self.max_positions = max_positions
        self.channel = GramSum(layer.name) if with_channel else None
        self.patch = GramSum(layer.name) if with_patch else None
        self.called = False
        self.vector: Tensor | None = None
        """The only input vector so far, in each of its channels."""
        self.varies = False
        self.padding: Padding | None = None
        self.padded = False
        """Whether padded positions were counted as data."""

    def add(self, x: Tensor, *, batch_first: bool = False) -> None:
        """Add one input of the layer; `batch_first` tells that it begins with the batch dimension."""
        self.called = self.called or x.numel() > 0
        if self.channel is None:
            return
        layer, most = self.layer, self.max_positions
        x = with_batch(x, layer)
        if x.shape[-1 if layer.kind == "linear" else 1] != layer.in_channels:
            return  # the layer will raise an error that says what it takes
        if self.padding is not None:
            x = self._without_padding(x, self.padding, batch_first)
        # A 1x1 kernel sees channels, but with a stride it skips positions.
        sees_channels = layer.kind == "conv" and not layer.transposed and layer.kernel_numel == 1
        vectors = patch_vectors if sees_channels else channel_vectors
        self.channel.add(x, lambda chunk: vectors(chunk, layer, most))
        self._compare(x.detach())
        if self.patch is not None:
            self.patch.add(x, lambda chunk: patch_vectors(chunk, layer, most))

    def _compare(self, x: Tensor) -> None:
        """Note whether the input has two different vectors; once it has, later inputs are not compared."""
        if self.varies or not x.numel():
            return
        vectors = x.flatten(0, -2) if self.layer.kind == "linear" else x.movedim(1, -1).flatten(0, -2)
        self.vector = vectors[0].clone() if self.vector is None else self.vector
        self.varies = bool((vectors != self.vector).any())

    def _without_padding(self, x: Tensor, padding: Padding, batch_first: bool) -> Tensor:
        """Return the positions of the input that are data as samples, or all of it if they cannot be told."""
        data = padding.data(x, batch_first=batch_first) if self.layer.kind == "linear" else None
        if data is None:
            self.padded |= not padding.is_per_sample(x)
            return x
        data, transposed = data
        return data_positions(x.transpose(0, 1) if transposed else x, data, self.max_positions)

    def saw_nothing(self, moments: Moments | None) -> bool:
        """Whether the layer had no input, or the same at every position, given the result of `moments`."""
        summed = self.channel is not None and self.channel.count > 0
        return not self.called or (summed and moments is None)

    def moments(self) -> Moments | None:
        """Return the averages; None if the layer had no input, only zeros, or one vector many times.

        An expert without tokens may run on zeros, so that its second layer receives the same vector everywhere. Rank 1
        reproduces the output for that vector, but not for other inputs.
        """
        channel = None if self.channel is None else self.channel.mean()
        if self.channel is None or channel is None or not bool(channel.any()):
            return None
        if self.channel.count > 1 and not self.varies:
            return None
        patch = None if self.patch is None else self.patch.mean()
        patches = 0 if self.patch is None else self.patch.count
        return Moments(channel=channel, patch=patch, count=self.channel.count, patches=patches)


def _allocate(layers: Sequence[LayerInfo], max_patch: int, memory_limit: int, max_positions: int) -> list[LayerSums]:
    """Choose which moments are collected under the limits."""
    channel = {layer.name: 8 * layer.groups * layer.group_in**2 for layer in layers}
    patch: dict[str, int] = {}
    for layer in layers:
        n = layer.group_in * layer.kernel_numel
        if layer.kernel_numel > 1 and not layer.transposed and n <= max_patch:
            patch[layer.name] = 8 * layer.groups * n**2
    for kind, needs in (("patch", patch), ("all", channel)):
        wanted = sum(channel.values()) + sum(patch.values())
        dropped: list[str] = []
        while needs and sum(channel.values()) + sum(patch.values()) > memory_limit:
            largest = max(needs, key=needs.__getitem__)
            dropped.append(largest)
            del needs[largest]
        if dropped:
            warnings.warn(
                f"second moments need {wanted / 2**20:,.0f} MiB, more than memory_limit "
                f"({memory_limit / 2**20:,.0f} MiB): leaving out {kind} moments of {', '.join(dropped)}. "
                "Raise memory_limit to include them.",
                RankfoldWarning,
                stacklevel=3,
            )
    return [
        LayerSums(
            layer,
            with_channel=layer.name in channel,
            with_patch=layer.name in channel and layer.name in patch,
            max_positions=max_positions,
        )
        for layer in layers
    ]


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def _hooks(model: nn.Module, sums: LayerSums) -> list[tuple[nn.Module, Hook]]:
    """Return the modules whose inputs meet the layer's weight, each once, with their hooks."""
    hooks: dict[tuple[int, str | None], tuple[nn.Module, Hook]] = {}
    for path in (sums.layer.name, *sums.layer.ties):
        module, role = find_layer(model, path)
        hooks[id(module), role] = module, _hook(sums, role)
    return list(hooks.values())


def _hook(sums: LayerSums, role: str | None) -> Hook:
    """Return the hook of a layer, or of an attention for one of its projections."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if role is None:
            sums.add(args[0] if args else next(iter(kwargs.values())))
        elif role == "out_proj":  # its input is not visible from outside, only whether it has any
            sums.called = sums.called or (args[0] if args else kwargs["query"]).numel() > 0
        else:
            index = ROLES.index(role)
            x = args[index] if index < len(args) else kwargs[("query", "key", "value")[index]]
            # Samples first, because positions are taken from each sample.
            sums.add(x.transpose(0, 1) if x.ndim == 3 and not module.batch_first else x, batch_first=True)

    return hook
