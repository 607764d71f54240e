"""Narrowings: which channels a model loses, as plain ids that need neither the model's graph nor its weights.

Channels are coupled: a filter that is removed also leaves the normalization after it, the inputs of every following
layer, and whatever is added to it. A `ChannelGroup` lists all of these places once. A channel of a group is the
smallest unit that can be removed: a filter, or several that must leave together, such as a group of a grouped
convolution.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from rankfold._config import is_integer
from rankfold._printable import quoted
from rankfold.errors import ConfigError, CorruptArtifact, PlanMismatch
from rankfold.records.layer import LayerInfo

Side = Literal["outputs", "inputs", "channels"]
CHANNEL_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a normalization or PReLU whose first dimension is the channels."""

MOST_INDICES = 2**24
"""Limit of what a file may expand to: channels of all axes, and indices that are removed from them."""

Removed = Mapping[Side | int, frozenset[int]]
"""The indices that one module or parameter loses, by side or dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where the channels of a group lie in one module or parameter.

    Parameters
    ----------
    name : str
        Dotted path of a module, or of a parameter outside of the known modules.
    side : {"outputs", "inputs", "channels"} or int
        Side of a layer; "channels" for a normalization or PReLU; the dimension of a parameter.
    offset, repeat : int
        Channel c has the indices ``offset + c * repeat`` and the ``repeat - 1`` that follow.
    indices : tuple of tuple of int
        The indices of each channel, where they are not regular; `offset` and `repeat` are then unused.
    """

    name: str
    side: Side | int
    offset: int = 0
    repeat: int = 1
    indices: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, name: str, side: Side | int, indices: Iterable[Iterable[int]]) -> Axis:
        """Return the axis on which each channel has the given indices, in its shortest form."""
        listed = [tuple(sorted(one)) for one in indices]
        offset, repeat = listed[0][0], len(listed[0])
        regular = all(
            one == tuple(range(offset + c * repeat, offset + (c + 1) * repeat)) for c, one in enumerate(listed)
        )
        if regular:
            return cls(name=name, side=side, offset=offset, repeat=repeat)
        return cls(name=name, side=side, indices=tuple(listed))

    def at(self, channel: int) -> tuple[int, ...]:
        """Return the indices of a channel on this axis."""
        if self.indices:
            return self.indices[channel]
        start = self.offset + channel * self.repeat
        return tuple(range(start, start + self.repeat))

    def of_channels(self, channels: Iterable[int]) -> list[int]:
        """Return the indices of several channels."""
        if self.repeat == 1 and not self.indices:
            return [self.offset + channel for channel in channels]
        return [i for channel in channels for i in self.at(channel)]

    def to_dict(self) -> dict[str, Any]:
        """Return the axis as JSON-ready values, without defaults."""
        out: dict[str, Any] = {"name": self.name, "side": self.side}
        if self.indices:
            return out | {"indices": [list(one) if len(one) > 1 else min(one) for one in self.indices]}
        out |= {"offset": self.offset} if self.offset else {}
        return out | ({"repeat": self.repeat} if self.repeat != 1 else {})

    @classmethod
    def from_dict(cls, group: str, data: Any) -> Axis:
        """Read an axis; `group` is the name of its group in messages."""
        where = f"plan, channel group {quoted(group)}"
        _check(isinstance(data, Mapping), f"{where}: an axis must be an object", data)
        _check_keys(data, ("name", "side", "offset", "repeat", "indices"), where)
        name, offset, repeat = data.get("name"), data.get("offset", 0), data.get("repeat", 1)
        side: Any = data.get("side")
        _check(isinstance(name, str), f"{where}: 'name' of an axis must be a path", name)
        where += f", axis {quoted(name)}"
        known = side in get_args(Side) if isinstance(side, str) else is_integer(side) and side >= 0
        _check(known, f"{where}: 'side' must be {', '.join(get_args(Side))} or a dimension", side)
        _check(is_integer(offset) and offset >= 0, f"{where}: 'offset' must be a nonnegative integer", offset)
        _check(is_integer(repeat) and repeat >= 1, f"{where}: 'repeat' must be a positive integer", repeat)
        listed = data.get("indices", [])
        _check(isinstance(listed, list), f"{where}: 'indices' must be a list", listed)
        indices = tuple(tuple(one) if isinstance(one, list) else (one,) for one in listed)
        flat = [i for one in indices for i in one]
        good = all(is_integer(i) and i >= 0 for i in flat) and all(indices) and len(set(flat)) == len(flat)
        _check(good, f"{where}: 'indices' must list different nonnegative integers for each channel", listed[:3])
        return cls(name=name, side=cast("Side | int", side), offset=offset, repeat=repeat, indices=indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Channels that lie in several modules and can only be removed from all of them.

    Parameters
    ----------
    name : str
        The first layer that computes the channels.
    width : int
        Number of channels in the original model.
    axes : tuple of Axis
        Where the channels lie.
    removed : tuple of int
        Ids of the channels that are removed, 0..width - 1, ascending.
    """

    name: str
    width: int
    axes: tuple[Axis, ...]
    removed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        listed = [_id(i) for i in self.removed]
        ids = tuple(sorted({i for i in listed if i is not None}))
        if None in listed:
            raise ConfigError(
                f"channel group {self.name!r}: 'removed' must list integer ids. Got {list(self.removed)[:5]} instead."
            )
        if len(ids) < len(self.removed):
            raise ConfigError(f"channel group {self.name!r}: 'removed' lists a channel twice. Remove one of them.")
        wrong = [i for i in ids if not 0 <= i < self.width]
        if wrong:
            raise ConfigError(
                f"channel group {self.name!r} has channels 0 to {self.width - 1}, but channel {wrong[0]} is removed. "
                "Remove existing channels only."
            )
        if len(ids) >= self.width:
            raise ConfigError(f"channel group {self.name!r} would lose all its {self.width} channels. Keep at least 1.")
        object.__setattr__(self, "removed", ids)

    @property
    def kept(self) -> tuple[int, ...]:
        """Ids of the channels that stay."""
        gone = set(self.removed)
        return tuple(i for i in range(self.width) if i not in gone)

    def without(self, removed: Iterable[int]) -> ChannelGroup:
        """Return the group with these channels removed, and no others; raise `ConfigError` for ids out of range."""
        return replace(self, removed=tuple(removed))

    def on(self, side: Side) -> tuple[Axis, ...]:
        """Return the axes on one side of layers."""
        return tuple(axis for axis in self.axes if axis.side == side)

    def to_json(self, indent: str) -> str:
        """Return the group as JSON text, one line for its ids and one for each axis."""
        head = {"name": self.name, "width": self.width, "removed": list(self.removed)}
        axes = ",\n".join(f"{indent}  {json.dumps(axis.to_dict())}" for axis in self.axes)
        return f'{indent}{json.dumps(head)[:-1]}, "axes": [\n{axes}\n{indent}]}}'

    @classmethod
    def from_dict(cls, data: Any) -> ChannelGroup:
        """Read a group."""
        _check(isinstance(data, Mapping), "plan: a channel group must be an object", data)
        name, width, removed, axes = (data.get(key) for key in ("name", "width", "removed", "axes"))
        _check(isinstance(name, str), "plan: 'name' of a channel group must be a layer", name)
        where = f"plan, channel group {quoted(name)}"
        _check_keys(data, ("name", "width", "removed", "axes"), where)
        _check(is_integer(width) and width > 0, f"{where}: 'width' must be a positive integer", width)
        _check(
            isinstance(removed, list) and all(map(is_integer, removed)), f"{where}: 'removed' must list ids", removed
        )
        _check(isinstance(axes, list) and len(axes) > 0, f"{where}: 'axes' must be a list that is not empty", axes)
        read = tuple(Axis.from_dict(name, axis) for axis in axes)
        for axis in read:
            listed = len(axis.indices) or width
            _check(listed == width, f"{where}, axis {quoted(axis.name)}: 'indices' must have {width} entries", listed)
        try:
            return cls(name=name, width=width, axes=read, removed=tuple(removed))
        except ConfigError as error:
            raise CorruptArtifact(f"plan: {error}") from error


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The channels that a model loses: every group that loses any.

    Parameters
    ----------
    groups : tuple of ChannelGroup
        Their ids and indices are those of the original model. Groups without removed channels are left out.
    """

    groups: tuple[ChannelGroup, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(group for group in self.groups if group.removed))

    def __bool__(self) -> bool:
        return bool(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def headline(self) -> str:
        """Return the number of channels that are removed in words."""
        gone, width = sum(len(g.removed) for g in self.groups), sum(g.width for g in self.groups)
        return f"{gone:,} of {width:,} channels removed from {len(self.groups)} group{'s' * (len(self.groups) != 1)}"

    def removed(self) -> dict[str, dict[Side | int, frozenset[int]]]:
        """Return the indices that each module or parameter loses, by side, by name."""
        gone: dict[str, dict[Side | int, set[int]]] = {}
        for group in self.groups:
            for axis in group.axes:
                indices = gone.setdefault(axis.name, {}).setdefault(axis.side, set())
                indices.update(axis.of_channels(group.removed))
        return {name: {side: frozenset(ids) for side, ids in sides.items()} for name, sides in gone.items()}

    def then(self, later: Narrowing) -> Narrowing:
        """Return the narrowing that removes what both remove.

        The groups of `later` are those of the model that this narrowing leaves: a group that both have, recognized by
        its name and its remaining width, has its ids there. Groups that only one of them has are taken over, so
        `later` must not have axes where this narrowing removes indices, except for those of common groups.
        """
        mine = {group.name: group for group in self.groups}
        touched = {(axis.name, axis.side) for group in self.groups for axis in group.axes}
        merged = dict(mine)
        for group in later.groups:
            first = mine.get(group.name)
            if first is not None and len(first.kept) == group.width:
                ids = (*first.removed, *(first.kept[i] for i in group.removed))
                merged[group.name] = first.without(ids)
            elif first is None and not any((axis.name, axis.side) in touched for axis in group.axes):
                merged[group.name] = group
            else:
                raise PlanMismatch(
                    f"channel group {group.name!r} does not continue the first narrowing, whose groups share axes with "
                    "it. Plan both on the original model."
                )
        return Narrowing(tuple(merged.values()))

    def renamed(self, new: Callable[[str], str | None]) -> Narrowing:
        """Return the narrowing of a model in which modules have other names; None for those that are not in it."""
        groups: list[ChannelGroup] = []
        for group in self.groups:
            axes = tuple(replace(axis, name=name) for axis in group.axes if (name := new(axis.name)) is not None)
            first, number, count = group.name.partition("#")
            if axes:
                groups.append(replace(group, name=(new(first) or axes[0].name) + number + count, axes=axes))
        return Narrowing(tuple(groups))

    def unprefixed(self, prefix: str) -> Narrowing:
        """Return the narrowing without a prefix of all names."""
        return Narrowing(
            tuple(
                replace(
                    group,
                    name=group.name.removeprefix(prefix),
                    axes=tuple(replace(axis, name=axis.name.removeprefix(prefix)) for axis in group.axes),
                )
                for group in self.groups
            )
        )

    def to_json(self, indent: str) -> str:
        """Return the groups as JSON text."""
        return ",\n".join(group.to_json(indent) for group in self.groups)

    @classmethod
    def from_list(cls, data: Any) -> Narrowing:
        """Read a narrowing."""
        _check(isinstance(data, list), "plan: 'narrowing' must be a list of channel groups", data)
        groups = tuple(ChannelGroup.from_dict(group) for group in data)
        counts = Counter(group.name for group in groups)
        twice = next((name for name, count in counts.items() if count > 1), None)
        _check(twice is None, "plan: 'narrowing' must have one entry for each channel group", twice)
        indices = sum(group.width + len(group.removed) * axis.repeat for group in groups for axis in group.axes)
        _check(indices <= MOST_INDICES, f"plan: 'narrowing' must have at most {MOST_INDICES:,} indices", indices)
        return cls(groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroups:
    """The channel groups of a model.

    Parameters
    ----------
    groups : tuple of ChannelGroup
        Groups whose width can shrink, without removed channels, in order of definition.
    fixed : dict of str to str
        Layers whose output width must stay, with the reason.
    """

    groups: tuple[ChannelGroup, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def group(self, name: str) -> ChannelGroup:
        """Return the group with this name, or that a layer of this name computes; raise `ConfigError` otherwise."""
        named = [group for group in self.groups if group.name == name]
        named = named or [g for g in self.groups if any(axis.name == name for axis in g.on("outputs"))]
        if len(named) == 1:
            return named[0]
        if named:
            raise ConfigError(
                f"the outputs of layer {name!r} belong to {len(named)} channel groups: "
                f"{', '.join(repr(group.name) for group in named[:5])}. Name one of them."
            )
        reason = self.fixed.get(name)
        if reason is not None:
            raise ConfigError(f"the width of layer {name!r} must stay: {reason}. Choose another layer.")
        known = ", ".join(repr(group.name) for group in self.groups[:10])
        raise ConfigError(f"the model has no channel group {name!r}. Its groups are {known or 'none'}.")

    def narrowing(self, removed: Mapping[str, Iterable[int]]) -> Narrowing:
        """Return the narrowing that removes channels from groups by name; raise `ConfigError` for what cannot go."""
        gone: dict[str, ChannelGroup] = {}
        for name, ids in removed.items():
            group = self.group(name)
            if group.name in gone:
                raise ConfigError(f"{name!r} names the channel group {group.name!r} a second time. Name it once.")
            if isinstance(ids, str) or not isinstance(ids, Iterable):
                raise ConfigError(f"channel group {group.name!r}: pass a list of channel ids. Got {ids!r} instead.")
            gone[group.name] = group.without(ids)
        return Narrowing(tuple(gone[group.name] for group in self.groups if group.name in gone))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What remains of one group of a layer: its number, and its channels, numbered within the group."""

    group: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def cut(layer: LayerInfo, removed: Removed) -> tuple[Part, ...]:
    """Return what remains of each group of a layer; groups that lose all inputs and outputs are left out.

    Raises
    ------
    PlanMismatch
        If indices are out of range, or the remaining groups would differ in width.
    """
    ins, outs = removed.get("inputs", frozenset()), removed.get("outputs", frozenset())
    return cut_groups(layer.title, layer.groups, (layer.in_channels, ins), (layer.out_channels, outs))


def cut_groups(
    title: str, groups: int, inputs: tuple[int, Collection[int]], outputs: tuple[int, Collection[int]]
) -> tuple[Part, ...]:
    """Return what remains of groups of channels; `inputs` and `outputs` are a width and the removed indices each."""
    for side, (width, removed) in (("inputs", inputs), ("outputs", outputs)):
        highest = max(removed, default=-1)
        if highest >= width:
            raise PlanMismatch(
                f"the narrowing removes index {highest} of the {side} of {title}, which has {width}. Use the model "
                "that the plan was made for."
            )

    def local(group: int, width: int, removed: Collection[int]) -> tuple[int, ...]:
        size = width // groups
        start = group * size
        return tuple(i for i in range(size) if start + i not in removed)

    parts = [Part(group=g, inputs=local(g, *inputs), outputs=local(g, *outputs)) for g in range(groups)]
    parts = [part for part in parts if part.inputs or part.outputs]
    widths = sorted({(len(part.inputs), len(part.outputs)) for part in parts})
    if len(widths) != 1 or 0 in widths[0]:
        shown = ", ".join(f"{ins}->{outs}" for ins, outs in widths[:5]) or "none"
        raise PlanMismatch(
            f"{title} cannot be narrowed: its groups must keep the same number of inputs and of outputs, at least one "
            f"each, but would keep {shown}. Remove other channels."
        )
    return tuple(parts)


def narrowed_layer(layer: LayerInfo, removed: Removed) -> LayerInfo:
    """Return a layer after a narrowing; raises as `cut`."""
    if not removed:
        return layer
    parts = cut(layer, removed)
    ins, outs = len(parts) * len(parts[0].inputs), len(parts) * len(parts[0].outputs)
    return replace(layer, in_channels=ins, out_channels=outs, groups=len(parts))


def _id(value: Any) -> int | None:
    """Return an id as an int, such as one from a NumPy array or a tensor; None for other values and items of a mask."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _check(valid: bool, what: str, value: object) -> None:
    if not valid:
        raise CorruptArtifact(f"{what}. Got {quoted(value)} instead.")


def _check_keys(data: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(map(str, set(data) - set(keys)))
    if unknown:
        raise CorruptArtifact(f"{where}: unknown key {quoted(unknown[0])}. The keys are {', '.join(map(repr, keys))}.")
