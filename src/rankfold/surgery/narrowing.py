"""Remove channels from a model: parameters, buffers and attributes of its own modules shrink in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import PlanMismatch
from rankfold.inventory.kinds import conv1d_base, frozen_norm_width, reparametrization, stock_base
from rankfold.inventory.members import members_of
from rankfold.inventory.narrowing import narrowed_outputs, narrowed_weight
from rankfold.inventory.weights import find_module
from rankfold.records import LayerInfo, Narrowing, narrowed_layer
from rankfold.records.narrowing import CHANNEL_TENSORS, Removed, cut_groups
from rankfold.surgery.exchange import listed
from rankfold.surgery.stock import memory_format

NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
"""Modules with tensors over channels, which have the side "channels"."""


def narrow_(model: nn.Module, narrowing: Narrowing) -> Callable[[], None]:
    """Remove channels in place, and return a function that restores the model.

    Parameters and buffers keep their identity, and with it ties, hooks and ``requires_grad``; data type, device and
    memory format stay. Gradients are discarded. The model is unchanged if this raises.

    Parameters
    ----------
    model : Module
        The original model.
    narrowing : Narrowing
        What to remove.

    Raises
    ------
    PlanMismatch
        If the narrowing does not fit the model; every mismatch is named.
    """
    return _changes(model, narrowing).make()


def check_narrowing(model: nn.Module, narrowing: Narrowing) -> None:
    """Raise `PlanMismatch` if a narrowing does not fit a model."""
    _changes(model, narrowing)


def _changes(model: nn.Module, narrowing: Narrowing) -> _Changes:
    """Return the changes of a narrowing, checked."""
    changes = _Changes(model)
    problems: list[str] = []
    for name, removed in narrowing.removed().items():
        try:
            changes.add(name, removed)
        except PlanMismatch as error:
            problems.append(str(error))
    problems += changes.shared()
    if problems:
        raise PlanMismatch(
            "the channels to remove do not fit this model. Use the model that the plan was made for, and edit only "
            f"'removed' in a plan file:\n{listed(problems, 20)}"
        )
    return changes


@dataclass(slots=True, eq=False)
class _Change:
    """How one tensor changes: a function that returns its new value, and the indices that it loses."""

    tensor: Tensor
    value: Callable[[], Tensor]
    spec: object
    holders: set[int] = field(default_factory=set)


class _Changes:
    """The changes of a narrowing, checked before any of them is made."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[int, _Change] = {}
        self.attributes: list[tuple[nn.Module, str, Any]] = []

    def add(self, name: str, removed: Removed) -> None:
        """Add what a module or parameter loses; raise `PlanMismatch` if that is impossible."""
        module = find_module(self.model, name)
        if module is None:
            self._add_parameter(name, removed)
        elif stock_base(module) is not None or conv1d_base(module) is not None:
            self._add_layer(name, module, removed)
        elif isinstance(module, NORMS) or frozen_norm_width(module) is not None:
            self._add_norm(name, module, removed)
        else:
            raise PlanMismatch(f"module {name!r} ({type(module).__name__}) has no channels that can be removed")

    def _add_layer(self, name: str, module: Any, removed: Removed) -> None:
        _check_sides(name, removed, ("inputs", "outputs"))
        for tensor in ("weight", "bias"):
            if computed := reparametrization(module, tensor):
                raise PlanMismatch(
                    f"the {tensor} of layer {name!r} is computed by {computed}. Remove the parametrization first"
                )
        layer = members_of(module, (name,))[0].info
        for attribute, value in _attributes(module, layer, narrowed_layer(layer, removed)).items():
            self.attributes.append((module, attribute, value))

        def weight(tensor: Tensor) -> Tensor:
            if layer.input_first:
                return narrowed_weight(tensor.mT, layer, removed).mT.contiguous()
            return narrowed_weight(tensor, layer, removed)

        self._set(module, "weight", weight, _spec(removed))
        if module.bias is not None:
            self._set(module, "bias", lambda t: narrowed_outputs(t, layer, removed), _spec(removed, "outputs"))

    def _add_norm(self, name: str, module: Any, removed: Removed) -> None:
        _check_sides(name, removed, ("channels",))
        kind = type(module).__name__
        groups, gone = 1, removed["channels"]
        if isinstance(module, nn.LayerNorm):
            if len(module.normalized_shape) != 1:
                raise PlanMismatch(f"{kind} {name!r} normalizes over several dimensions, so its width must stay")
            width = module.normalized_shape[0]
        elif isinstance(module, nn.GroupNorm):
            width, groups = module.num_channels, module.num_groups
        elif isinstance(module, nn.PReLU):
            width = module.num_parameters
        else:
            width = frozen_norm_width(module) or module.num_features
        parts = cut_groups(f"{kind} {name!r}", groups, (width, gone), (width, gone))
        left = width - len(gone)
        if isinstance(module, nn.GroupNorm):
            self.attributes += [(module, "num_channels", left), (module, "num_groups", len(parts))]
        elif isinstance(module, nn.LayerNorm):
            self.attributes.append((module, "normalized_shape", (left,)))
        else:
            attribute = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
            self.attributes += [(module, attribute, left)] if hasattr(module, attribute) else []
        for tensor in CHANNEL_TENSORS:
            if isinstance(getattr(module, tensor, None), Tensor):
                self._set(module, tensor, lambda t: _without(t, {0: gone}), _spec(removed))

    def _add_parameter(self, name: str, removed: Removed) -> None:
        path, _, last = name.rpartition(".")
        owner = find_module(self.model, path)
        tensor = None if owner is None else {**owner._parameters, **owner._buffers}.get(last)
        if owner is None or tensor is None:
            raise PlanMismatch(f"{name!r} is not in the model")
        for dim, gone in removed.items():
            size = tensor.shape[dim] if isinstance(dim, int) and dim < tensor.ndim else 0
            if not isinstance(dim, int) or size <= max(gone) or size == len(gone):
                raise PlanMismatch(
                    f"parameter {name!r} has shape {tuple(tensor.shape)}, from which {len(gone)} indices up to "
                    f"{max(gone)} cannot be removed in dimension {dim!r}"
                )
        self._set(owner, last, lambda t: _without(t, removed), _spec(removed))

    def _set(self, module: nn.Module, name: str, change: Callable[[Tensor], Tensor], spec: object) -> None:
        tensor = getattr(module, name)

        def value() -> Tensor:
            return change(tensor).to(memory_format=memory_format(tensor))

        planned = self.tensors.setdefault(id(tensor), _Change(tensor, value, spec))
        planned.holders.add(id(module))
        if planned.spec != spec:
            raise PlanMismatch(f"{name!r} of {type(module).__name__} is shared by modules that lose different channels")

    def shared(self) -> list[str]:
        """Return the tensors that modules without a part in the narrowing also hold."""
        problems: list[str] = []
        for path, module in self.model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                change = self.tensors.get(id(tensor))
                if change is not None and id(module) not in change.holders:
                    where = f"{path}.{name}" if path else name
                    problems.append(f"{where!r} is shared with a module that loses channels, but would keep its width")
        return problems

    def make(self) -> Callable[[], None]:
        """Make all changes; return a function that reverts them."""
        values = [change.value() for change in self.tensors.values()]
        before = [(change.tensor, change.tensor.data, change.tensor.grad) for change in self.tensors.values()]
        settings = [(module, name, getattr(module, name)) for module, name, _ in self.attributes]

        def restore() -> None:
            for tensor, data, grad in before:
                tensor.grad = None
                tensor.data = data
                tensor.grad = grad
            for module, name, value in settings:
                setattr(module, name, value)

        for change, value in zip(self.tensors.values(), values, strict=True):
            change.tensor.grad = None
            change.tensor.data = value
        for module, name, value in self.attributes:
            setattr(module, name, value)
        return restore


def _attributes(module: nn.Module, before: LayerInfo, after: LayerInfo) -> Mapping[str, int]:
    """Return the attributes of a layer that change, with their new values."""
    if before.kind == "conv":
        names = {"in_channels": after.in_channels, "out_channels": after.out_channels, "groups": after.groups}
    elif before.input_first:
        names = {"nx": after.in_channels, "nf": after.out_channels}
    else:
        names = {"in_features": after.in_channels, "out_features": after.out_channels}
    return {name: value for name, value in names.items() if hasattr(module, name) and getattr(module, name) != value}


def _without(tensor: Tensor, removed: Mapping[Any, frozenset[int]]) -> Tensor:
    """Return a copy of a tensor without some indices of each dimension."""
    tensor = tensor.detach()
    for dim, gone in removed.items():
        kept = [i for i in range(tensor.shape[dim]) if i not in gone]
        tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    return tensor


def _check_sides(name: str, removed: Removed, sides: tuple[str, ...]) -> None:
    wrong = [side for side in removed if side not in sides]
    if wrong:
        raise PlanMismatch(f"module {name!r} has no side {wrong[0]!r}; its sides are {', '.join(sides)}")


def _spec(removed: Removed, *sides: str) -> object:
    return frozenset((side, gone) for side, gone in removed.items() if not sides or side in sides)
