"""Apply a plan: whole models in, smaller models out, factors found in one of three ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._printable import few
from rankfold._progress import track
from rankfold._turns import in_grad_turn
from rankfold.api.calibrating import Calibration, calibration_of
from rankfold.api.options import Fitting, Reconstruct, reconstruction
from rankfold.calibration import (
    LayerMoments,
    Renewal,
    Sequential,
    adopt_,
    is_tracking_norm,
    reconstruct_sequentially,
    reestimate_batchnorm,
)
from rankfold.factor.linalg import double
from rankfold.factor.moments import Moments, output_energy
from rankfold.inventory import Spare, layer_weight, static_inventory
from rankfold.inventory.narrowing import fitted_weight
from rankfold.methods import to_canonical
from rankfold.records import Plan
from rankfold.surgery import Proof, apply_plan_, check_plan, factored_layers, plan_of
from rankfold.surgery.apply import inner_plan, outer_plan, remember_plan
from rankfold.surgery.carried import report_parameters
from rankfold.surgery.narrowed import narrowed_copy
from rankfold.surgery.narrowing import narrow_
from rankfold.surgery.values import take_over_


@in_grad_turn
def apply(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | None = None,
    *,
    reconstruct: Reconstruct | Sequential | None = None,
    batchnorm: bool = True,
    example_input: Any = None,
) -> nn.Module:
    """Return a copy of the model with the plan applied.

    Parameters
    ----------
    model : Module
        The model that the plan was made for; left untouched.
    plan : Plan
        The plan to apply.
    calibration : iterable, optional
        Batches of inputs; labels are not needed. An iterable is read more than once; an iterator is read once and its
        items are kept in memory.
    reconstruct : {"weights", "data", "sequential"} or Sequential, optional
        What the factors minimize: the error of the weights; that of each layer's output on the calibration data; or
        that of each layer's output given the outputs of the compressed layers before it. "data" also refits the layers
        that read removed channels. "sequential", whose options are a `Sequential`, is the most accurate without
        training, fits the weights of all layers that are kept, and takes several times as long as "data". The default
        is "data" with calibration data and "weights" without.
    batchnorm : bool
        With calibration data: re-estimate BatchNorm statistics where that brings the outputs closer to the original's.
    example_input : object, optional
        What the model is called with, to verify that the compressed model runs the factored layers (`Proof`); by
        default the inputs of the first calibration batch. Without either, only references that can be seen are checked.

    Raises
    ------
    PlanMismatch
        If the plan does not fit; every mismatch is named, and nothing has been changed.
    ModelError
        If the compressed model would still run layers of the original, such as by a `forward` that was set on the
        instance.
    ConfigError
        If the reconstruction needs calibration data and there is none.
    """
    how = reconstruction(reconstruct, has_data=calibration is not None)
    check_plan(model, plan)
    data = calibration_of(model, calibration)
    return apply_plan(model, plan, data, how, batchnorm=batchnorm, example_input=example_input).model


@in_grad_turn
def apply_(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | None = None,
    *,
    reconstruct: Reconstruct | Sequential | None = None,
    example_input: Any = None,
) -> nn.Module:
    """Apply a plan in place and return the model.

    As `apply`, but BatchNorm statistics are not re-estimated, because the original weights are overwritten. Only
    "sequential" needs a copy of the model, and holds it until the end; "data" copies the layers that read removed
    channels. A model that is itself one layer cannot be changed in place: its replacement is returned. Nothing is
    changed if a check fails, except for the proof by a run (`example_input`, or the first calibration batch), which
    comes after the change.
    """
    how = reconstruction(reconstruct, has_data=calibration is not None)
    check_plan(model, plan)
    data = calibration_of(model, calibration)
    small = None
    if how.mode == "sequential" and data is not None:
        small = reconstruct_sequentially(model, plan, data.batches, how.sequential).model
    fitted = {} if small is not None else _fitted_weights(model, plan, data, how)
    restore = narrow_(model, plan.narrowing)
    inner = inner_plan(plan)
    try:
        _set_weights_(model, fitted)
        proof = _proof(model, inner, data, example_input)
        if small is not None:
            new = remember_plan(adopt_(model, small, inner), plan_of(small))
        else:
            own = None if data is None else data.of(model)
            new = _factored_(model, inner, _moments(model, inner, own, how))
    except BaseException:
        restore()
        raise
    if proof is not None:
        proof.check(new)
    return remember_plan(new, outer_plan(plan_of(new), plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A compressed model and how it came about.

    Parameters
    ----------
    model : Module
        The compressed copy.
    renewed : Renewal or None
        Whether BatchNorm statistics were replaced, and why; None if that was not tried, or there are none.
    errors : dict of str to float
        Of sequential reconstruction: relative error of each factored layer's output against what it was fitted to.
    notes : list of str
        For the report.
    source : Source
        What was factored.
    """

    model: nn.Module
    renewed: Renewal | None
    errors: dict[str, float]
    notes: list[str]
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a plan factors.

    Parameters
    ----------
    model : Module
        The dense model: the original, or a copy without the channels that the plan removes.
    moments : LayerMoments or None
        Second moments of the inputs of the layers that are factored; None without data.
    """

    model: nn.Module
    moments: LayerMoments | None


def apply_plan(
    model: nn.Module,
    plan: Plan,
    data: Calibration | None,
    how: Fitting,
    *,
    batchnorm: bool = True,
    example_input: Any = None,
    spare: Spare | None = None,
    like: nn.Module | None = None,
) -> Applied:
    """Apply a checked plan to a copy of the model, the spare one if there is one, and prove it.

    With `like`, a compressed model, layers that have the same factors there, and everything outside of factored layers,
    take over its values.
    """
    report_parameters(model)
    if plan.narrowing:
        applied = _apply_narrowed(model, plan, data, how, example_input=example_input, spare=spare)
    else:
        applied = _apply_factors(model, plan, data, how, example_input=example_input, spare=spare)
    new, errors, renewed = applied.model, applied.errors, None
    if like is not None:
        take_over_(new, like, static_inventory(model))
        errors = {}
    if batchnorm and data is not None and any(map(is_tracking_norm, new.modules())):
        renewed = reestimate_batchnorm(new, data.batches, model)
    return replace(applied, renewed=renewed, errors=errors)


def _apply_narrowed(
    model: nn.Module, plan: Plan, data: Calibration | None, how: Fitting, *, example_input: Any, spare: Spare | None
) -> Applied:
    """Narrow a copy of the model, and factor the layers of the result."""
    example = _proof_input(data, example_input)
    if how.mode == "sequential" and data is not None:
        narrow = narrowed_copy(model, plan.narrowing, example)
        return _apply_factors(model, plan, data, how, example_input=example, spare=spare, proved=narrow)
    fitted = _fitted_weights(model, plan, data, how)
    note = f"fitted to the calibration data, because they read removed channels: {few(list(fitted))}"
    narrow = _set_weights_(narrowed_copy(model, plan.narrowing, example, spare=spare), fitted)
    own = None if data is None else data.of(narrow)
    if not plan.factored:
        provenance = replace(plan.provenance, reconstruct="weights" if own is None else how.mode)
        new = remember_plan(narrow, replace(plan, provenance=provenance))
        applied = Applied(model=new, renewed=None, errors={}, notes=[], source=Source(model=narrow, moments=None))
    else:
        applied = _apply_factors(narrow, inner_plan(plan), own, how, example_input=example_input, spare=None)
        applied = replace(applied, model=remember_plan(applied.model, outer_plan(plan_of(applied.model), plan)))
    return replace(applied, notes=[*applied.notes, note]) if fitted else applied


def _apply_factors(
    model: nn.Module,
    plan: Plan,
    data: Calibration | None,
    how: Fitting,
    *,
    example_input: Any,
    spare: Spare | None,
    proved: nn.Module | None = None,
) -> Applied:
    """Factor the layers of a copy of the model; `proved` is the model that it is compared with by a run."""
    errors: dict[str, float] = {}
    notes: list[str] = []
    proved = model if proved is None else proved
    proof = _proof(proved, plan, data, example_input)
    suspects: list[str] | None = None if proof is None else []
    source = Source(model=proved, moments=_moments(model, plan, data, how))
    if how.mode == "sequential" and data is not None:
        made = reconstruct_sequentially(model, plan, data.batches, how.sequential, suspects=suspects, spare=spare)
        new = made.model
        errors = {name: error for name, error in made.errors.items() if name in plan.factored}
        notes = [f"{name}: {note}" for name, note in made.notes.items()]
    else:
        twin = (spare or Spare(model, instead="rankfold.apply_ with a plan")).give()
        new = _factored_(twin, plan, source.moments, original=model, suspects=suspects)
    if proof is not None:
        proof.check(new, suspects or ())
    return Applied(model=new, renewed=None, errors=errors, notes=notes, source=source)


def measured_errors(
    small: nn.Module, dense: nn.Module, moments: Mapping[str, Moments] | None = None
) -> dict[str, float]:
    """Return the relative error of every factored layer, recomputed from the built module, 0..1.

    In the norm in which the factors were found: of the layer's output where there are moments, of its weight
    elsewhere. `dense` and `moments` are those of the `Source`.
    """
    names = {layer.name for layer in static_inventory(dense)}  # not those of aliases and tied layers
    errors = dict[str, float]()
    for name, module in factored_layers(small).items():
        if name not in names:
            continue
        weight = double(layer_weight(dense, name))
        with torch.no_grad():
            difference = double(module.dense_weight().detach()) - weight
        squares = [
            float(output_energy(to_canonical(w, module.info), (moments or {}).get(name))) for w in (difference, weight)
        ]
        errors[name] = math.sqrt(max(squares[0], 0.0) / squares[1]) if squares[1] > 0 else 0.0
    return errors


def source_of(model: nn.Module, plan: Plan, data: Calibration | None, how: Fitting) -> Source:
    """Return what a plan factors."""
    if not plan.narrowing:
        return Source(model=model, moments=_moments(model, plan, data, how))
    narrow = _set_weights_(narrowed_copy(model, plan.narrowing), _fitted_weights(model, plan, data, how))
    own = None if data is None else data.of(narrow)
    return Source(model=narrow, moments=_moments(narrow, inner_plan(plan), own, how))


def _moments(model: nn.Module, plan: Plan, data: Calibration | None, how: Fitting) -> LayerMoments | None:
    """Return the second moments that the factors of a plan without a narrowing are computed with; None without data."""
    if data is None or how.mode != "data":
        return None
    layers = check_plan(model, plan)
    return data.moments([layers[name] for name in plan.factored])


def _fitted_weights(model: nn.Module, plan: Plan, data: Calibration | None, how: Fitting) -> dict[str, Tensor]:
    """Return the weights of the layers that read removed channels, fitted to their outputs in the original model."""
    if data is None or how.mode != "data":
        return {}
    removed = plan.narrowing.removed()
    layers = [layer for layer in static_inventory(model) if removed.get(layer.name, {}).get("inputs")]
    moments = data.moments(layers)
    return {
        layer.name: fitted_weight(layer_weight(model, layer.name), layer, removed[layer.name], moments[layer.name])
        for layer in layers
        if layer.name in moments
    }


def _set_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    for name, weight in weights.items():
        layer_weight(model, name).copy_(weight)
    return model


def _factored_(
    model: nn.Module,
    plan: Plan,
    moments: Mapping[str, Moments] | None,
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> nn.Module:
    plan = replace(plan, provenance=replace(plan.provenance, reconstruct="weights" if moments is None else "data"))
    progress = partial(track, description="factoring")
    return apply_plan_(model, plan, moments, progress=progress, original=original, suspects=suspects)


def _proof(model: nn.Module, plan: Plan, data: Calibration | None, example_input: Any) -> Proof | None:
    """Return the proof on the example input, or on the first calibration batch; None if there is neither."""
    example_input = _proof_input(data, example_input)
    return None if example_input is None else Proof(model, plan.factored, example_input)


def _proof_input(data: Calibration | None, example_input: Any) -> Any:
    """Return the example input, by default the first calibration batch; None if there is neither."""
    return data.first_batch()[0] if example_input is None and data is not None else example_input
