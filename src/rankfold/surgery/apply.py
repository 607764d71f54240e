"""Apply a plan to a model: check everything first, then swap layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rankfold import methods
from rankfold.errors import ConfigError, InvalidWeight, PlanMismatch, RankfoldError
from rankfold.factor.moments import Moments
from rankfold.inventory import find_module, layer_bias, layer_weight, static_inventory
from rankfold.records import Choice, LayerInfo, Plan, Provenance
from rankfold.surgery.attention import separated
from rankfold.surgery.carried import carry_attributes_, carry_gradient_flags_, move_hooks_
from rankfold.surgery.exchange import exchange_
from rankfold.surgery.factored import Factored, build
from rankfold.surgery.gauged import Gauged
from rankfold.surgery.saving import refuse_save_pretrained_
from rankfold.surgery.stock import memory_format

_PLAN = "rankfold_plan"

Swap = tuple[tuple[str, ...], Factored]
"""The names of one module, and what replaces it."""


def check_plan(model: nn.Module, plan: Plan) -> dict[str, LayerInfo]:
    """Return the model's layers by name if the plan fits them.

    Raises
    ------
    PlanMismatch
        If layers of the plan are missing in the model or differ from the plan's fingerprint; every one is named.
    RankfoldError
        If a choice names an unknown method, an unknown option, a layer that the method cannot factor, ranks out of
        range, or a gauge that there is none of (the respective subclass).
    """
    if not isinstance(plan, Plan):
        raise ConfigError(f"the plan must be a rankfold.Plan; Plan.load reads one. Got {type(plan).__name__} instead.")
    layers = {layer.name: layer for layer in static_inventory(model)}
    shared = {other: layer.name for layer in layers.values() for other in (*layer.aliases, *layer.ties)}
    problems = []
    for name in plan.layers:
        if name in shared:
            problems.append(f"layer {name!r} shares its weight with {shared[name]!r}; decide under that name")
        elif name not in layers:
            problems.append(f"layer {name!r} is not in the model")
        elif name in plan.fingerprint:
            wanted = plan.fingerprint[name]
            here = layers[name].fingerprint_like(wanted)
            if here != wanted:
                problems.append(f"layer {name!r} is {here}, the plan was made for {wanted}")
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise PlanMismatch(
            "the plan does not fit this model:\n  " + "\n  ".join(shown) + "\nMake a plan for this model."
        )
    for name, choice in plan.factored.items():
        methods.check_choice(layers[name], choice)
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
    """Replace the planned layers in place.

    Nothing is changed unless every check passes and every layer could be factored.

    Parameters
    ----------
    model : nn.Module
        The model; returned, unless it is itself the one layer, in which case its replacement is.
    plan : Plan
        What to do.
    moments : mapping or None
        Second moments of the layers' inputs, by layer name; layers without an entry are factored by their weight
        alone.
    progress : callable
        Wraps the iteration over the layer names.
    original, suspects
        As for `exchange_`.

    Raises
    ------
    ModelError
        If a layer is also held where it cannot be replaced, such as by a function.
    RankfoldError
        As for `check_plan`.
    """
    layers = check_plan(model, plan)
    new: dict[str, Factored] = {}
    for name in progress(list(plan.factored)):
        choice = plan.layers[name]
        new[name] = factor_layer(model, layers[name], choice, (moments or {}).get(name))
    return remember_plan(replace_layers(model, layers, new, original=original, suspects=suspects), plan)


def factor_layer(
    model: nn.Module, layer: LayerInfo, choice: Choice, moments: Moments | None, *, weight: torch.Tensor | None = None
) -> Factored:
    """Return the module that is to replace a layer; it approximates `weight`, by default the layer's own."""
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
    """Put factored layers in the place of layers, their aliases and (sharing the factors) the layers tied to them.

    Parameters
    ----------
    model : nn.Module
        Changed in place and returned; a model that is itself the layer cannot be, so its replacement is.
    layers : mapping of str to LayerInfo
        The model's layers by name.
    modules : mapping of str to Factored
        The replacements by the name of the layer.
    original, suspects
        As for `exchange_`.
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
    """Return the paths of the layers tied to a layer: those of one module together."""
    paths: dict[object, list[str]] = {}
    for tie in layer.ties:
        module = find_module(model, tie)  # None for a projection of an attention, which is not a module yet
        paths.setdefault(module or tie, []).append(tie)
    return [tuple(names) for names in paths.values()]


def tied_twin(module: Factored, bias: torch.Tensor | None, *, one_bias: bool) -> Factored:
    """Return the module for a layer tied to the one that a module replaces: the very weights and indices of it.

    Its bias is its own, of these values, or with `one_bias` the very bias of the module.
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
    """Put factored layers in the place of modules in place, each under all of its names; return the model.

    Parameters
    ----------
    model : nn.Module
        Changed in place; nothing is changed if this raises.
    swaps : sequence of (tuple of str, Factored)
        The names of a module, and what replaces it.
    original, suspects
        As for `exchange_`.
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
                if role == "out_proj":  # the attention's own was never called, but others may refer to it
                    new[attention.out_proj] = module
            else:
                old = model.get_submodule(name)
                new[old] = module
            if name == names[0]:
                carry_(old, module)
    root = new.get(model, model)
    for twin, role, module in inside:
        twin.set_submodule(role, module)
    if root is model:
        exchange_(model, new, original=original, suspects=suspects)
    return root


def carry_(old: nn.Module, module: Factored) -> None:
    """Give a factored layer the flags, hooks and attributes of the module that it replaces."""
    module.train(old.training)
    carry_gradient_flags_(old, module)
    move_hooks_(old, module)
    carry_attributes_(old, module)


def factored_layers(model: nn.Module) -> dict[str, Factored]:
    """Return the factored layers of a model by dotted path, each module once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Factored)}


def remember_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Note on a model which plan made it, for `plan_of`, and keep others from saving it; return the model."""
    object.__setattr__(model, _PLAN, plan)
    refuse_save_pretrained_(model)
    return model


def plan_of(model: nn.Module) -> Plan:
    """Return the plan that made a model.

    If the model has been wrapped or put into another one since, the choices are read off its factored layers.

    Raises
    ------
    RankfoldError
        If the model holds no factored layer.
    """
    factored = factored_layers(model)
    plan = getattr(model, _PLAN, None)
    if isinstance(plan, Plan) and set(plan.factored) <= set(factored):
        return plan
    if not factored:
        raise RankfoldError("the model holds no factored layer; apply a plan first.")
    decisions: dict[tuple[int, ...], str] = {}
    for name, module in factored.items():  # tied layers hold the same factors: the first of them has the decision
        weights = tuple(id(p) for n, p in module.named_parameters() if n.endswith("weight"))
        decisions.setdefault(weights, name)
    factored = {name: factored[name] for name in decisions.values()}
    return Plan(
        layers={name: module.choice for name, module in factored.items()},
        fingerprint={name: module.info.fingerprint for name, module in factored.items()},
        provenance=plan.provenance if isinstance(plan, Plan) else Provenance(strategy="unknown"),
    )
