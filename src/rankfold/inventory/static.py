"""What can be known of a model's layers without running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from rankfold.errors import ModelError
from rankfold.inventory.kinds import (
    is_attention,
    original_class,
    other_reason,
    own_parameters,
    packed_weight,
    stored_parameters,
)
from rankfold.inventory.members import Member, members_of
from rankfold.inventory.sharing import tensor_key, unique
from rankfold.inventory.wrappers import check_unwrapped, require_module
from rankfold.records import LayerInfo, OtherModule

# Every module once, with all of its paths.
Modules = Sequence[tuple[nn.Module, tuple[str, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One decision: a layer, and every member whose weight it decides over."""

    info: LayerInfo
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """What a model is made of, before it is run."""

    entries: tuple[Entry, ...]
    others: tuple[OtherModule, ...]


def static_inventory(model: nn.Module) -> tuple[LayerInfo, ...]:
    """Return every layer of a model without running it.

    Names, shapes, ties and settings are those that `inspect` lists; there are no calls, and the
    skip reasons that only a run can tell are missing.

    Raises
    ------
    ModelError
        If the model is wrapped (DataParallel, DDP, FSDP, torch.compile) or TorchScript.
    """
    return tuple(entry.info for entry in scan(model).entries)


def scan(model: nn.Module) -> Scan:
    """Find a model's layers, what they share, and what else owns parameters.

    Raises
    ------
    ModelError
        As `static_inventory` says.
    """
    check_model(model)
    modules = list(walk(model))
    found = [member for module, paths in modules for member in members_of(module, paths)]
    return Scan(entries=_decisions(found, modules), others=_others(found, modules))


def check_model(model: nn.Module) -> None:
    """Raise `ModelError` if this is no plain model whose modules can be swapped."""
    require_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is TorchScript, whose modules cannot be swapped. Pass the Python model that it was made from."
        )
    check_unwrapped(model)


def walk(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield every module once with all of its paths, in order of definition.

    What an attention or a parametrisation consists of belongs to it and is no module here.
    """
    paths: dict[nn.Module, list[str]] = {}

    def visit(module: nn.Module, path: str, above: frozenset[nn.Module]) -> None:
        paths.setdefault(module, []).append(path)
        if is_attention(module):
            return
        parametrized = nn.utils.parametrize.is_parametrized(module)
        for name, child in module._modules.items():
            # A child that holds one of its parents would go on for ever.
            if child is None or child in above or (parametrized and name == "parametrizations"):
                continue
            visit(child, f"{path}.{name}" if path else name, above | {child})

    visit(model, "", frozenset({model}))
    for module, names in paths.items():
        yield module, tuple(names)


def _decisions(found: Sequence[Member], modules: Modules) -> tuple[Entry, ...]:
    """Join the members with the same weight; skip those whose weight has other users."""
    groups: dict[Hashable, list[Member]] = defaultdict(list)
    for member in found:
        groups[member.key].append(member)
    owners = _owners(found, modules)
    entries: list[Entry] = []
    for group in groups.values():
        first = group[0].info
        reason = _outsider(group, owners)
        if reason is None and len({_settings(m.info) for m in group}) == 1:
            ties = tuple(path for m in group[1:] for path in (m.info.name, *m.info.aliases))
            entries.append(Entry(info=replace(first, ties=ties), members=tuple(group)))
            continue
        for member in group:
            why = reason or _unequal(member, group)
            skip = member.info.skip or why
            entries.append(Entry(info=replace(member.info, skip=skip), members=(member,)))
    order = {id(member): i for i, member in enumerate(found)}
    return tuple(sorted(entries, key=lambda entry: order[id(entry.members[0])]))


def _owners(found: Sequence[Member], modules: Modules) -> dict[Hashable, dict[int, str]]:
    """Return who holds each stored parameter: the holder's id and its name in words."""
    owners: dict[Hashable, dict[int, str]] = defaultdict(dict)
    for module, paths in modules:
        for parameter in own_parameters(module).values():
            owners[tensor_key(parameter)][id(module)] = _called(paths[0], module)
    for member in found:  # an attention's output projection is not among the modules
        for parameter in member.stored:
            if member.holder is not member.module:
                owner = f"{member.info.name!r} ({member.info.type_name})"
                owners[tensor_key(parameter)][id(member.holder)] = owner
    return owners


def _outsider(group: Sequence[Member], owners: dict[Hashable, dict[int, str]]) -> str | None:
    """Return the reason to keep a weight that a module outside the group holds too."""
    inside = {id(member.holder) for member in group}
    for member in group:
        for parameter in member.stored:
            for holder, name in owners[tensor_key(parameter)].items():
                if holder not in inside:
                    return f"its weight is shared with {name}"
    return None


def _unequal(member: Member, group: Sequence[Member]) -> str:
    other = next(m.info.name for m in group if m is not member)
    return f"its weight is shared with {other!r}, a layer with other settings"


def _settings(info: LayerInfo) -> LayerInfo:
    return replace(info, name="", aliases=(), type_name="", attention="")


def _called(path: str, module: nn.Module) -> str:
    name = original_class(module).__name__
    return f"{path!r} ({name})" if path else f"the model itself ({name})"


def _others(found: Sequence[Member], modules: Modules) -> tuple[OtherModule, ...]:
    """List what owns parameters that belong to no layer, each parameter once.

    Layers that are quantised already are listed with the size of their packed weight.
    """
    seen = {tensor_key(p) for member in found for p in member.stored}
    seen |= {tensor_key(p) for m in found for p in _biases(m)}
    others: list[OtherModule] = []
    for module, paths in modules:
        own = [p for p in unique(own_parameters(module).values()) if tensor_key(p) not in seen]
        packed = packed_weight(module)
        own += [] if packed is None else [packed]
        seen |= {tensor_key(p) for p in own}
        if own:
            others.append(
                OtherModule(
                    name=paths[0],
                    type_name=original_class(module).__name__,
                    params=sum(p.numel() for p in own),
                    reason=other_reason(module),
                )
            )
    return tuple(others)


def _biases(member: Member) -> list[torch.Tensor]:
    name = "bias" if member.role in (None, "out_proj") else "in_proj_bias"
    return list(stored_parameters(member.holder, name).values())
