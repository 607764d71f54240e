"""Find a model's layers without running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

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
    """One decision: a layer, and all members that compute with its weight."""

    info: LayerInfo
    members: tuple[Member, ...]


def static_inventory(model: nn.Module) -> tuple[LayerInfo, ...]:
    """Return the layers of a model without running it.

    Names, shapes, ties and settings are those that `inspect` lists. Calls are missing, and so are the skip reasons that
    require a run.

    Raises
    ------
    ModelError
        If the model is wrapped (DataParallel, DDP, FSDP, torch.compile) or TorchScript.
    """
    return tuple(entry.info for entry in scan(model)[0])


def scan(model: nn.Module) -> tuple[tuple[Entry, ...], tuple[OtherModule, ...]]:
    """Return a model's layers, tied ones joined, and the other owners of parameters; raises as `static_inventory`."""
    check_model(model)
    modules = list(walk(model))
    members = [member for module, paths in modules for member in members_of(module, paths)]
    return _decisions(members, modules), _others(members, modules)


def weight_memory(entries: Sequence[Entry]) -> Iterator[tuple[Tensor, int]]:
    """Yield the tensors in whose memory the layers' weights lie, with the positions of the entries."""
    for i, entry in enumerate(entries):
        for member in entry.members:
            yield from ((tensor, i) for tensor in member.memory)


def check_model(model: nn.Module) -> None:
    """Raise `ModelError` unless this is a model whose modules can be replaced."""
    require_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is TorchScript, whose modules cannot be replaced. Pass the Python model that it was made from."
        )
    check_unwrapped(model)


def walk(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield every module once with all of its paths, in order of definition.

    The submodules of an attention or a parametrization are not listed.
    """
    paths: dict[nn.Module, list[str]] = {}

    def visit(module: nn.Module, path: str, above: frozenset[nn.Module]) -> None:
        paths.setdefault(module, []).append(path)
        for name, child in module._modules.items():
            # A child that holds one of its parents would recurse forever.
            if child is None or child in above or is_hidden(module, name):
                continue
            visit(child, f"{path}.{name}" if path else name, above | {child})

    visit(model, "", frozenset({model}))
    for module, names in paths.items():
        yield module, tuple(names)


def is_hidden(module: nn.Module, child: str) -> bool:
    """Return whether a submodule is a part of its module: of an attention, or a parametrization."""
    return is_attention(module) or (child == "parametrizations" and nn.utils.parametrize.is_parametrized(module))


def _decisions(members: Sequence[Member], modules: Modules) -> tuple[Entry, ...]:
    """Join the members with the same weight; skip those whose weight has other users."""
    groups: dict[Hashable, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.key].append(member)
    owners = _owners(members, modules)
    entries: list[Entry] = []
    for group in groups.values():
        first = group[0].info
        reason = _outsider(group, owners)
        settings = {replace(m.info, name="", aliases=(), type_name="", attention="") for m in group}
        if reason is None and len(settings) == 1:
            ties = tuple(path for m in group[1:] for path in (m.info.name, *m.info.aliases))
            entries.append(Entry(info=replace(first, ties=ties), members=tuple(group)))
            continue
        for member in group:
            skip = member.info.skip or reason
            if skip is None:
                other = next(m.info.name for m in group if m is not member)
                skip = f"its weight is shared with {other!r}, a layer with other settings"
            entries.append(Entry(info=replace(member.info, skip=skip), members=(member,)))
    order = {id(member): i for i, member in enumerate(members)}
    return tuple(sorted(entries, key=lambda entry: order[id(entry.members[0])]))


def _owners(members: Sequence[Member], modules: Modules) -> dict[Hashable, dict[int, str]]:
    """Return the holders of each stored parameter: their ids, and what to call them."""
    owners: dict[Hashable, dict[int, str]] = defaultdict(dict)
    for module, paths in modules:
        owner = f"{repr(paths[0]) if paths[0] else 'the model itself'} ({original_class(module).__name__})"
        for parameter in own_parameters(module).values():
            owners[tensor_key(parameter)][id(module)] = owner
    for member in members:  # an attention's output projection is not among the modules
        if member.holder is not member.module:
            for parameter in member.stored:
                owner = f"{member.info.name!r} ({member.info.type_name})"
                owners[tensor_key(parameter)][id(member.holder)] = owner
    return owners


def _outsider(group: Sequence[Member], owners: dict[Hashable, dict[int, str]]) -> str | None:
    """Return the reason to keep a weight that a module outside the group also holds."""
    inside = {id(member.holder) for member in group}
    for member in group:
        for parameter in member.stored:
            for holder, name in owners[tensor_key(parameter)].items():
                if holder not in inside:
                    return f"its weight is shared with {name}"
    return None


def _others(members: Sequence[Member], modules: Modules) -> tuple[OtherModule, ...]:
    """Return the owners of parameters outside of layers, each parameter once.

    Quantized layers are listed with the size of their packed weight.
    """
    seen = {tensor_key(p) for member in members for p in (*member.stored, *_biases(member))}
    others: list[OtherModule] = []
    for module, paths in modules:
        own = [p for p in unique(own_parameters(module).values()) if tensor_key(p) not in seen]
        if (packed := packed_weight(module)) is not None:
            own.append(packed)
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


def _biases(member: Member) -> Iterable[Tensor]:
    name = "bias" if member.role in (None, "out_proj") else "in_proj_bias"
    return stored_parameters(member.holder, name).values()
