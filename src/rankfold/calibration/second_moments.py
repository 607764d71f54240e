"""Second moments of every layer's input, streamed in one pass over the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from rankfold._config import require
from rankfold.calibration.gram import GramSum
from rankfold.calibration.patches import channel_vectors, patch_vectors
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.inventory.quiet import model_inputs, run_batch, undisturbed
from rankfold.records import LayerInfo

PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
OUTPUT = "out_proj"
_SHOWN = 8
"""Layers that a warning names."""


class LayerMoments(dict[str, Moments]):
    """Second moments by layer name.

    Attributes
    ----------
    unreached : tuple of str
        Layers that no sample reaches, or that were only given zeros: the data says nothing about them.
    """

    unreached: tuple[str, ...] = ()


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

    The model runs in evaluation mode without gradients, on each batch from the state that it is in; afterwards it and
    the random states are as before. A layer that shares its weight (`LayerInfo.ties`) gets the moments of all inputs
    that meet this weight; one that is called several times, of all calls. Layers that no sample reaches, and those that
    are given nothing but zeros, get no entry and are named in a warning: what is not known of them is left to their
    weights. Nor does the output projection of an `nn.MultiheadAttention` get one: its input cannot be seen from
    outside.

    Parameters
    ----------
    model : Module
        The model, on the device where it is to run.
    batches : iterable
        Batches with or without targets (`rankfold.batches`); targets are not used.
    layers : sequence of LayerInfo
        The layers, from an inventory of this model.
    max_patch : int
        The patch moment is collected for kernels larger than 1 where its size ``n = in / groups * prod(kernel)`` is at
        most this. The default is that of 256 channels and a 3x3 kernel.
    memory_limit : int
        Bytes of all moments together. Where they need more, patch moments are left out, the largest
        first, then whole layers, with a warning.
    max_positions : int
        The most positions of each sample that are taken, on an even grid. The default takes all of a
        32x32 feature map, and at least 784 of any square one that is larger.

    Returns
    -------
    LayerMoments
        A dict by layer name. Float64; relative error below 1e-5 for float32 activations.

    Raises
    ------
    DataError
        If there is no batch, or a layer's input holds NaN or infinity.
    ModelError
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
            run_batch(model, inputs, f"calibration batch {number}")
            reset()
    averages = {s.layer.name: s.moments() for s in sums}
    collected = LayerMoments({name: moments for name, moments in averages.items() if moments is not None})
    collected.unreached = tuple(s.layer.name for s in sums if s.saw_nothing(averages[s.layer.name]))
    if collected.unreached:
        warnings.warn(f"{unreached_text(collected.unreached)}.", RankfoldWarning, stacklevel=2)
    return collected


def unreached_text(names: Sequence[str]) -> str:
    """Return the sentence for layers that no calibration sample reaches, without a full stop."""
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"no calibration sample reaches {shown} (never called, or given nothing but zeros): judged and factored by the "
        "weights alone. Give data that reaches them, or exclude them to keep them as they are"
    )


class LayerSums:
    """The growing sums of one layer; without `with_channel` only whether there is anything to sum."""

    def __init__(self, layer: LayerInfo, *, with_channel: bool, with_patch: bool, max_positions: int) -> None:
        self.layer = layer
        self.max_positions = max_positions
        self.channel = GramSum(layer.name) if with_channel else None
        self.patch = GramSum(layer.name) if with_patch else None
        self.called = False

    def add(self, x: Tensor) -> None:
        """Add one input of the layer."""
        self.called = self.called or x.numel() > 0
        if self.channel is None:
            return
        layer, most = self.layer, self.max_positions
        if layer.kind == "linear":
            x = x.unsqueeze(0) if x.ndim == 1 else x
        elif x.ndim == len(layer.kernel) + 1:  # one sample without its batch dimension
            x = x.unsqueeze(0)
        # A 1x1 kernel sees channels, but with a stride not all of them.
        sees_channels = layer.kind == "conv" and not layer.transposed and layer.kernel_numel == 1
        vectors = patch_vectors if sees_channels else channel_vectors
        self.channel.add(x, lambda chunk: vectors(chunk, layer, most))
        if self.patch is not None:
            self.patch.add(x, lambda chunk: patch_vectors(chunk, layer, most))

    def saw_nothing(self, moments: Moments | None) -> bool:
        """Whether the layer was given nothing but zeros, if anything; with the moments that there are."""
        summed = self.channel is not None and self.channel.count > 0
        return not self.called or (summed and moments is None)

    def moments(self) -> Moments | None:
        """Return the averages; None if the layer saw nothing, or zeros only."""
        channel = None if self.channel is None else self.channel.mean()
        if self.channel is None or channel is None or not bool(channel.any()):
            return None
        patch = None if self.patch is None else self.patch.mean()
        return Moments(channel=channel, patch=patch, count=self.channel.count)


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
                f"second moments need {wanted / 2**20:,.0f} MiB, more than the memory_limit of "
                f"{memory_limit / 2**20:,.0f} MiB: leaving out {kind} moments of "
                f"{', '.join(dropped)}. Raise memory_limit to have them.",
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
    hooks: dict[tuple[int, str], tuple[nn.Module, Hook]] = {}
    for path in (sums.layer.name, *sums.layer.ties):
        parent_path, _, last = path.rpartition(".")
        parent = _submodule(model, parent_path)
        if isinstance(parent, nn.MultiheadAttention):
            if last in PROJECTIONS:
                hooks[id(parent), last] = parent, _attention_hook(sums, PROJECTIONS[last])
            elif last == OUTPUT:
                hooks[id(parent), last] = parent, _called_hook(sums)
            continue
        module = _submodule(model, path)
        hooks[id(module), ""] = module, _input_hook(sums)
    return list(hooks.values())


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the model has no layer {path!r}. Pass the layers of an inventory of this model.") from error


def _input_hook(sums: LayerSums) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        sums.add(args[0] if args else next(iter(kwargs.values())))

    return hook


def _called_hook(sums: LayerSums) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        query = args[0] if args else kwargs["query"]
        sums.called = sums.called or query.numel() > 0

    return hook


def _attention_hook(sums: LayerSums, name: str) -> Hook:
    index = list(PROJECTIONS.values()).index(name)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[index] if index < len(args) else kwargs[name]
        # Samples first: positions are taken from each sample.
        first = x.ndim == 3 and not module.batch_first
        sums.add(x.transpose(0, 1) if first else x)

    return hook
