"""Apply a plan to a model: check everything first, then replace the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from rankfold import methods
from rankfold.errors import ConfigError, InvalidWeight, PlanMismatch, RankfoldError
from rankfold.factor.moments import Moments
from rankfold.inventory import find_module, layer_bias, layer_weight, static_inventory
from rankfold.records import Choice, LayerInfo, Narrowing, Plan, Provenance, narrowed_layer
from rankfold.surgery.attention import separated
from rankfold.surgery.carried import carry_attributes_, carry_gradient_flags_, move_hooks_
from rankfold.surgery.exchange import exchange_, listed
from rankfold.surgery.factored import Factored, build
from rankfold.surgery.gauged import Gauged
from rankfold.surgery.narrowing import check_narrowing
from rankfold.surgery.saving import replace_save_pretrained_
from rankfold.surgery.stock import memory_format

PLAN_MARKS = _PLAN, _ORIGIN = "rankfold_plan", "rankfold_origin"
"""Attributes of a compressed model and of its modules."""

Swap = tuple[tuple[str, ...], Factored]
"""The names of one module, and its replacement."""


def check_plan(model: nn.Module, plan: Plan) -> dict[str, LayerInfo]:
    """Return the model's layers by name, after checking that the plan fits them.

    Raises
    ------
    PlanMismatch
        If layers of the plan are missing in the model or differ from the plan's fingerprint, or channels cannot be
        removed; all of them are named.
    RankfoldError
        If a choice has an unknown method or option, a layer that the method does not support, ranks out of range, or
        no bond that can be gauged (the respective subclass).
    """
    if not isinstance(plan, Plan):
        raise ConfigError(f"the plan must be a rankfold.Plan; Plan.load reads one. Got {type(plan).__name__} instead.")
    layers = {layer.name: layer for layer in static_inventory(model)}
    shared = {other: layer.name for layer in layers.values() for other in (*layer.aliases, *layer.ties)}
    problems = []
    for name in plan.layers:
        if name in shared:
            problems.append(f"layer {name!r} shares its weight with {shared[name]!r}; use that name in the plan")
        elif name not in layers:
            problems.append(f"layer {name!r} is not in the model")
        elif name in plan.fingerprint:
            wanted = plan.fingerprint[name]
            here = layers[name].fingerprint_like(wanted)
            if here != wanted:
                problems.append(f"layer {name!r} is {here}, but the plan was made for {wanted}")
    if problems:
        raise PlanMismatch(
            f"the plan does not fit this model:\n{listed(problems, 20)}\n"
            "Make a plan for this model, or use the model that the plan was made for."
        )
    if plan.narrowing:
        check_narrowing(model, plan.narrowing)
    removed = plan.narrowing.removed()
    for name, choice in plan.factored.items():
        methods.check_choice(narrowed_layer(layers[name], removed.get(name, {})), choice)
    return layers


def apply_plan_(
    model: nn.Module,
    plan: Plan,
    moments: Mapping[str, Moments] | None = None,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> nn.Module:
    """Replace the planned layers in place and return the model, or its replacement if it is itself the layer.

    The model is unchanged if this raises, as `check_plan` and `exchange_` do. `moments` are the second moments of the
    layers' inputs by layer name; layers without an entry are factored by their weight alone. `progress` wraps the
    iteration over the layer names. For `original` and `suspects`, see `exchange_`.
    """
    layers = check_plan(model, plan)
    moments = moments or {}
    new = {
        name: factor_layer(model, layers[name], plan.layers[name], moments.get(name))
        for name in progress(list(plan.factored))
    }
    return remember_plan(replace_layers(model, layers, new, original=original, suspects=suspects), plan)


def factor_layer(
    model: nn.Module, layer: LayerInfo, choice: Choice, moments: Moments | None, *, weight: torch.Tensor | None = None
) -> Factored:
    """Return the replacement of a layer, which approximates `weight` or, by default, the layer's own."""
    weight = layer_weight(model, layer.name) if weight is None else weight
    bias = layer_bias(model, layer.name)
    if weight.is_meta:
        raise InvalidWeight(
            f"the weight of layer {layer.name!r} ({layer.describe()}) is on the meta device and has no values. "
            "Load the model's weights first."
        )
    method = methods.get(choice.method or "", choice.options)
    factors = methods.prepare(method, weight, layer, moments).factorize(choice.ranks)
    blueprint = methods.chosen_blueprint(layer, choice)
    module = build(blueprint, layer, choice, dtype=weight.dtype, device=weight.device, factors=factors, bias=bias)
    return module.to(memory_format=memory_format(weight))


def replace_layers(
    model: nn.Module,
    layers: Mapping[str, LayerInfo],
    modules: Mapping[str, Factored],
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> nn.Module:
    """Replace layers by name, with their aliases and, sharing the factors, the layers tied to them; return the model.

    `layers` are the model's layers by name; for `original` and `suspects`, see `exchange_`.
    """
    swaps: list[Swap] = []
    for name, module in modules.items():
        layer = layers[name]
        own = _stored_bias(model, name)
        for paths in tied_paths(model, layer):
            one_bias = own is not None and own is _stored_bias(model, paths[0])
            swaps.append((paths, tied_twin(module, layer_bias(model, paths[0]), one_bias=one_bias)))
        swaps.append(((name, *layer.aliases), module))
    return swap_(model, swaps, original=original, suspects=suspects)


def _stored_bias(model: nn.Module, path: str) -> nn.Parameter | None:
    module = find_module(model, path)
    return None if module is None else module._parameters.get("bias")


def tied_paths(model: nn.Module, layer: LayerInfo) -> list[tuple[str, ...]]:
    """Return the paths of the layers tied to a layer, grouped by module."""
    paths: dict[object, list[str]] = {}
    for tie in layer.ties:
        module = find_module(model, tie)  # None for a projection of an attention, which is not a module yet
        paths.setdefault(module or tie, []).append(tie)
    return [tuple(names) for names in paths.values()]


def tied_twin(module: Factored, bias: torch.Tensor | None, *, one_bias: bool) -> Factored:
    """Return the module for a layer tied to the one that `module` replaces: it shares weights and indices.

    Its bias is a parameter with the values `bias`, or the bias of `module` if `one_bias`.
    """
    twin: Any = copy.deepcopy(module)
    if one_bias:
        twin.bias = module.bias
    elif twin.bias is not None and bias is not None:
        with torch.no_grad():
            twin.bias.copy_(bias)
    for target, source in zip(twin.modules(), module.modules(), strict=True):
        if source._parameters.get("weight") is not None:
            target.register_parameter("weight", source._parameters["weight"])
        if isinstance(source, Gauged):
            target.register_buffer("order", source.order)
    return twin


def swap_(
    model: nn.Module,
    swaps: Sequence[Swap],
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> nn.Module:
    """Replace modules in place, each under all of its names, and return the model, which is unchanged if this raises.

    If the model itself is replaced, its replacement is returned. For `original` and `suspects`, see `exchange_`.
    """
    new: dict[nn.Module, nn.Module] = {}
    inside: list[tuple[nn.Module, str, Factored]] = []
    for names, module in swaps:
        for name in names:
            parent, _, role = name.rpartition(".")
            attention = find_module(model, parent)
            if isinstance(attention, nn.MultiheadAttention):
                if attention not in new:
                    new[attention] = separated(attention)
                twin = new[attention]
                inside.append((twin, role, module))
                old = twin.get_submodule(role)
                if role == "out_proj":  # the attention never called its own module, but others may refer to it
                    new[attention.out_proj] = module
            else:
                old = model.get_submodule(name)
                new[old] = module
            if name == names[0]:
                module.train(old.training)
                carry_gradient_flags_(old, module)
                move_hooks_(old, module)
                carry_attributes_(old, module)
    root = new.get(model, model)
    for twin, role, module in inside:
        twin.set_submodule(role, module)
    if root is model:
        exchange_(model, new, original=original, suspects=suspects)
    return root


def factored_layers(model: nn.Module) -> dict[str, Factored]:
    """Return the factored layers of a model by dotted path, each module once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Factored)}


def replaced_layers(model: nn.Module) -> dict[str, LayerInfo]:
    """Return the layers of a compressed model by name, factored ones as the layers that they replace."""
    factored = {name: module.info for name, module in factored_layers(model).items()}
    return {layer.name: layer for layer in static_inventory(model)} | factored


def factors_key(module: Factored) -> tuple[int, ...]:
    """Return a key that tied layers share: the identities of their factors."""
    return tuple(id(p) for name, p in module.named_parameters() if name.endswith("weight"))


def inner_plan(plan: Plan) -> Plan:
    """Return the part of a plan that is left to do on the narrowed model."""
    return replace(plan, narrowing=Narrowing(), fingerprint={}) if plan.narrowing else plan


def outer_plan(done: Plan, plan: Plan) -> Plan:
    """Return the plan for the original model, whose `inner_plan` was applied as `done`."""
    return replace(done, narrowing=plan.narrowing, fingerprint=plan.fingerprint)


def remember_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Store the plan on a model for `plan_of`, replace other libraries' ways to save it, and return it."""
    object.__setattr__(model, _PLAN, plan)
    replace_save_pretrained_(model, plan.narrowing)
    _remember_origins(model, plan)
    return model


def plan_of(model: nn.Module) -> Plan:
    """Return the plan that was applied to a model.

    If the model has since been wrapped, or parts of it were moved into another one, the choices are those of its
    factored layers, and the removed channels those of the plans of its parts.

    Raises
    ------
    RankfoldError
        If the model has no factored layers.
    """
    factored = factored_layers(model)
    plan = getattr(model, _PLAN, None)
    if isinstance(plan, Plan) and set(plan.factored) <= set(factored):
        return plan
    parts = _moved(model)
    if not factored and not parts:
        raise RankfoldError("the model has no factored layers; apply a plan first.")
    first: dict[tuple[int, ...], str] = {}  # tied layers share their factors and one choice
    for name, module in factored.items():
        first.setdefault(factors_key(module), name)
    factored = {name: factored[name] for name in first.values()}
    prints = {name: module.info.fingerprint for name, module in factored.items()}
    prints |= {new[name]: text for part, new in parts for name, text in part.fingerprint.items() if name in new}
    kept = {new[name]: choice for part, new in parts for name, choice in part.layers.items() if name in new}
    return Plan(
        layers=kept | {name: module.choice for name, module in factored.items()},
        fingerprint=prints,
        narrowing=Narrowing(
            tuple(group for part, new in parts for group in part.narrowing.renamed(partial(_new_name, new)))
        ),
        provenance=plan.provenance if isinstance(plan, Plan) else Provenance(strategy="unknown"),
    )


def forget_plan_(model: nn.Module) -> None:
    """Remove what `remember_plan` stored on a model and on its modules."""
    for module in model.modules():
        for name in PLAN_MARKS:
            vars(module).pop(name, None)


def _remember_origins(model: nn.Module, plan: Plan) -> None:
    """Store a plan that removes channels on the modules that it names: they may be moved into another model."""
    named = {*plan.layers, *(axis.name for group in plan.narrowing for axis in group.axes)} if plan.narrowing else ()
    for name in named:
        for path in (name, name.rpartition(".")[0]):  # of a parameter, its owner
            module = find_module(model, path)
            if module is not None:
                vars(module)[_ORIGIN] = plan, path
                break


def _moved(model: nn.Module) -> list[tuple[Plan, dict[str, str]]]:
    """Return the plans that narrowed parts of a model, with the new name of each of their modules that is left."""
    parts: dict[int, tuple[Plan, dict[str, str]]] = {}
    for path, module in model.named_modules():
        plan, name = vars(module).get(_ORIGIN, (None, ""))
        if plan is not None:
            parts.setdefault(id(plan), (plan, {}))[1].setdefault(name, path)
    return list(parts.values())


def _new_name(new: Mapping[str, str], name: str) -> str | None:
    """Return the new name of a module, or of a parameter of a module; None if it is not left."""
    owner, _, last = name.rpartition(".")
    return new.get(name) or (f"{new[owner]}.{last}" if owner in new else None)
