"""Channel groups: which channels of a model leave together, and which widths must stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from rankfold._turns import in_grad_turn
from rankfold.errors import ModelError
from rankfold.inventory import static_inventory
from rankfold.inventory.static import walk
from rankfold.pruning.graph import ATTENTION, OUTPUT, Couplings, Key, trace
from rankfold.pruning.parts import parts, shared
from rankfold.pruning.trial import Trial
from rankfold.records import Axis, ChannelGroup, ChannelGroups, LayerInfo

ONE = "it has a single channel that can be removed, and must keep it"
UNSEEN = "the graph does not reach it"
SELECTS = "what follows it selects by values, as a detector selects boxes, so that outputs cannot be compared"
LEAVES = "it is an output of a module, such as a backbone or head, whose users select by values"
ELSEWHERE = "its weight is also used outside of its module"


@in_grad_turn
def channel_groups(model: nn.Module, example_input: Any) -> ChannelGroups:
    """Return the channels of a model that can be removed, in groups that lie in the same places.

    Torch-Pruning's dependency graph tells what is coupled. Every group is then tried on a copy with random weights:
    the narrowed network must compute what the network with masked channels computes, and cost what is predicted.

    The outputs of detectors jump: rounding alone can select other boxes. Their largest modules with continuous outputs
    are examined instead, such as the backbone and each head, and channels that leave such a module stay.

    Parameters
    ----------
    model : Module
        The dense model; left unchanged.
    example_input : object
        As for `rankfold.inspect`.

    Returns
    -------
    ChannelGroups
        The groups, and the reasons for the layers whose width must stay.

    Raises
    ------
    MissingExtra
        If Torch-Pruning is not installed (``pip install "rankfold[prune]"``).
    ModelError
        If the model cannot be traced.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> groups = channel_groups(net, torch.zeros(1, 8))
    >>> [(group.name, group.width) for group in groups], groups.fixed
    ([('0', 16)], {'2': 'it is an output of the model'})
    """
    trial = Trial(model, example_input)
    return _of_parts(trial) if trial.jumps() else _of_whole(model, example_input, trial)


def _of_parts(trial: Trial) -> ChannelGroups:
    """Return the channel groups of the largest modules with continuous outputs."""
    model = trial.copy
    groups: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for path, part, inputs in parts(model, trial.example):
        inner, outside = _of_part(part, inputs), shared(part, model, path)
        for group in inner:
            axes = tuple(replace(axis, name=f"{path}.{axis.name}") for axis in group.axes)
            if outside.isdisjoint(axis.name for axis in group.axes):
                groups.append(replace(group, name=f"{path}.{group.name}", axes=axes))
            else:
                reasons |= {axis.name: ELSEWHERE for axis in axes}
        reasons |= {f"{path}.{name}": LEAVES if reason == OUTPUT else reason for name, reason in inner.fixed.items()}
    free = {axis.name for group in groups for axis in group.on("outputs")}
    names = [layer.name for layer in static_inventory(model)]
    return ChannelGroups(groups=tuple(groups), fixed={n: reasons.get(n, SELECTS) for n in names if n not in free})


def _of_part(part: nn.Module, inputs: Any) -> ChannelGroups:
    """Return the channel groups of a part, or of the parts inside one that cannot be traced (a selection of boxes)."""
    try:
        return channel_groups(part, inputs)
    except ModelError:
        return _of_parts(Trial(part, inputs))


def _of_whole(model: nn.Module, example_input: Any, trial: Trial) -> ChannelGroups:
    """Return the channel groups of a model with continuous outputs."""
    layers = static_inventory(model)
    couplings = trace(model, example_input)
    for layer in layers:
        _couple_layer(couplings, layer)
    for module, paths in walk(model):
        if isinstance(module, nn.GroupNorm):
            _couple_parts(couplings, [((paths[0], "channels"), module.num_channels)], module.num_groups)
    fixed: dict[str, str] = {}
    candidates = _groups(couplings, layers, fixed)
    failed = trial.failing(candidates)
    for group in candidates:
        if group.name in failed:
            for axis in group.on("outputs"):
                fixed.setdefault(axis.name, failed[group.name])
    groups = tuple(group for group in candidates if group.name not in failed)
    free = {axis.name for group in groups for axis in group.on("outputs")}
    unseen = [layer for layer in layers if layer.name not in fixed and layer.name not in free]
    fixed |= {layer.name: ATTENTION if layer.attention else UNSEEN for layer in unseen}
    return ChannelGroups(
        groups=groups, fixed={layer.name: fixed[layer.name] for layer in layers if layer.name in fixed}
    )


def _couple_layer(couplings: Couplings, layer: LayerInfo) -> None:
    """Couple the groups of a grouped convolution, and layers that share a weight."""
    ins: Key = (layer.name, "inputs")
    outs: Key = (layer.name, "outputs")
    axes = ((ins, layer.in_channels), (outs, layer.out_channels))
    _couple_parts(couplings, axes, layer.groups)
    for path in layer.ties:
        for mine, width in axes:
            theirs: Key = (path, mine[1])
            if mine in couplings.sizes or theirs in couplings.sizes:
                couplings.sizes |= {mine: width, theirs: width}
                couplings.edges.append((mine, list(range(width)), theirs, list(range(width))))


def _couple_parts(couplings: Couplings, axes: Sequence[tuple[Key, int]], groups: int) -> None:
    """Couple the channels of a module with groups: whole groups where there are many, else equal places in all groups.

    Removing a whole group of a normalization or convolution leaves the others exactly as they are.
    """
    if groups == 1 or not any(key in couplings.sizes for key, _ in axes):
        return
    whole = all(groups >= width // groups for _, width in axes)
    first, leader = axes[0][0], axes[0][1] // groups
    for key, width in axes:
        couplings.sizes.setdefault(key, width)
        size = width // groups
        if whole:
            couplings.edges.append((first, [i // size * leader for i in range(width)], key, list(range(width))))
        else:
            couplings.edges.append((key, [i % size for i in range(width)], key, list(range(width))))


def _groups(couplings: Couplings, layers: Sequence[LayerInfo], fixed: dict[str, str]) -> list[ChannelGroup]:
    """Return the connected components as groups; `fixed` receives the layers with channels that must stay."""
    labels, start = _components(couplings)
    reasons: dict[int, str] = {}
    for key, indices, reason in couplings.fixed:
        reasons |= {label: reasons.get(label, reason) for label in labels[start[key] + np.asarray(indices)].tolist()}
    places: dict[int, dict[Key, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, size in couplings.sizes.items():
        for i, label in enumerate(labels[start[key] : start[key] + size].tolist()):
            places[label][key].append(i)
    order = {layer.name: i for i, layer in enumerate(layers)}
    alike: dict[frozenset[tuple[Key, int]], list[dict[Key, list[int]]]] = defaultdict(list)
    for label, place in places.items():
        made = [name for name, side in place if side == "outputs"]
        if label in reasons:
            for name in made:
                fixed.setdefault(name, reasons[label])
        elif made:
            alike[frozenset((key, len(ids)) for key, ids in place.items())].append(place)
    groups: list[ChannelGroup] = []
    for channels in alike.values():
        root = min(
            (name for name, side in channels[0] if side == "outputs"), key=lambda name: order.get(name, len(order))
        )
        if len(channels) == 1:
            fixed.setdefault(root, ONE)
            continue
        groups.append(_group(root, channels, order))
    groups.sort(key=lambda group: (order.get(group.name, len(order)), group.on("outputs")[0].at(0)))
    return _named_apart(groups)


def _group(root: str, channels: list[dict[Key, list[int]]], order: Mapping[str, int]) -> ChannelGroup:
    """Return the group of channels that lie in the same places; `root` is its first layer."""
    channels.sort(key=lambda place: place[root, "outputs"])
    keys = sorted(
        channels[0], key=lambda key: (key != (root, "outputs"), order.get(key[0], len(order)), str(key[1]) == "inputs")
    )
    axes = tuple(Axis.of(name, side, (place[name, side] for place in channels)) for name, side in keys)
    return ChannelGroup(name=root, width=len(channels), axes=axes)


def _named_apart(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Number the groups of a layer whose outputs lie in several groups."""
    seen: dict[str, int] = defaultdict(int)
    named: list[ChannelGroup] = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        name = group.name if number == 1 else f"{group.name}#{number}"
        named.append(ChannelGroup(name=name, width=group.width, axes=group.axes))
    return named


def _components(couplings: Couplings) -> tuple[Any, dict[Key, int]]:
    """Return the component of every index of every axis, and the position of each axis in that array."""
    from scipy.sparse import coo_array  # a second to import, for the plans that need it
    from scipy.sparse.csgraph import connected_components

    start: dict[Key, int] = {}
    total = 0
    for key, size in couplings.sizes.items():
        start[key] = total
        total += size
    ends = [
        (start[one] + np.asarray(i, dtype=np.int64), start[other] + np.asarray(j, dtype=np.int64))
        for one, i, other, j in couplings.edges
    ]
    rows = np.concatenate([i for i, _ in ends]) if ends else np.empty(0, np.int64)
    columns = np.concatenate([j for _, j in ends]) if ends else np.empty(0, np.int64)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(total, total))
    return connected_components(graph, directed=False)[1], start
