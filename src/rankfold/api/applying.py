"""Apply a plan: whole models in, smaller models out, factors found in one of three ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from rankfold._config import build_config
from rankfold._grad_mode import trainable
from rankfold._progress import track
from rankfold._turns import in_turn
from rankfold.api.checks import reusable
from rankfold.batches import iterate, split_batch
from rankfold.calibration import (
    Renewal,
    SequentialConfig,
    adopt_,
    collect_moments,
    is_tracking_norm,
    reconstruct_sequentially,
    reestimate_batchnorm,
)
from rankfold.errors import ConfigError, UnknownNameError
from rankfold.factor.moments import Moments
from rankfold.inventory import evaluating
from rankfold.records import Plan
from rankfold.surgery import Proof, apply_plan_, check_plan, copy_model, plan_of
from rankfold.surgery.apply import remember_plan
from rankfold.surgery.carried import report_parameters

Reconstruct = Literal["weights", "data", "sequential"]
"""How factors are found; see `apply`."""

SequentialOptions = SequentialConfig | Mapping[str, Any]

_RECONSTRUCT = ("weights", "data", "sequential")


@in_turn
@trainable
def apply(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | None = None,
    *,
    reconstruct: Reconstruct | None = None,
    sequential: SequentialOptions | None = None,
    batchnorm: bool = True,
    example_input: Any = None,
) -> nn.Module:
    """Return a copy of the model with the plan applied.

    Parameters
    ----------
    model : Module
        The model that the plan was made for; left untouched.
    plan : Plan
        What to do with each layer.
    calibration : iterable, optional
        Batches of inputs, labels not needed; iterated over more than once (once if it is an iterator, whose items are
        then kept).
    reconstruct : {"weights", "data", "sequential"}, optional
        What the factors make small: the error of the weights; that of each layer's output on the calibration data; or
        that of each layer's output given what the layers before it, compressed already, put out. The last is the most
        accurate without training, fits the weights of layers that are kept as well, and takes one pass over the data
        for each layer. The default is "data" with calibration data and "weights" without.
    sequential : SequentialConfig or mapping, optional
        Options of "sequential".
    batchnorm : bool
        With calibration data: re-estimate BatchNorm statistics where that brings the outputs closer to the original's.
    example_input : object, optional
        What the model is called with, to prove that the compressed model runs what was swapped (`Proof`); by default
        the inputs of the first calibration batch. Without either, only references that can be seen are checked.

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
    mode, options = check_reconstruct(reconstruct, calibration is not None, sequential)
    layers = check_plan(model, plan)
    batches = reusable(calibration)
    moments = None
    if mode == "data" and batches is not None:
        moments = collect_moments(model, batches, [layers[name] for name in plan.factored])
    return apply_mode(
        model, plan, batches, mode, moments=moments, sequential=options, batchnorm=batchnorm,
        example_input=example_input,
    ).model  # fmt: skip


@in_turn
@trainable
def apply_(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | None = None,
    *,
    reconstruct: Reconstruct | None = None,
    sequential: SequentialOptions | None = None,
    example_input: Any = None,
) -> nn.Module:
    """Apply a plan in place and return the model.

    As `apply`, but BatchNorm statistics are not estimated anew (there is no original to compare with). Only
    "sequential" needs a copy of the model, and holds it until the end. A model that is itself one layer cannot be
    changed in place: its replacement is returned. Nothing is changed if a check fails, except for the proof by a run
    (`example_input`, or the first calibration batch), which comes after the change.
    """
    mode, options = check_reconstruct(reconstruct, calibration is not None, sequential)
    layers = check_plan(model, plan)
    batches = reusable(calibration)
    proof = _proof(model, plan, batches, example_input)
    if mode == "sequential" and batches is not None:
        small = reconstruct_sequentially(model, plan, batches, options).model
        new = remember_plan(adopt_(model, small, plan), plan_of(small))
    else:
        moments = None
        if mode == "data" and batches is not None:
            moments = collect_moments(model, batches, [layers[name] for name in plan.factored])
        new = _factored_(model, plan, moments)
    if proof is not None:
        proof.check(new)
    return new


def check_reconstruct(
    reconstruct: str | None, has_data: bool, sequential: SequentialOptions | None = None
) -> tuple[str, SequentialConfig]:
    """Return how factors are to be found, None being the default that the data allows, and the options of that."""
    if reconstruct is not None and reconstruct not in _RECONSTRUCT:
        raise UnknownNameError("reconstruction", reconstruct, _RECONSTRUCT)
    if reconstruct in ("data", "sequential") and not has_data:
        raise ConfigError(
            f"reconstruct={reconstruct!r} needs calibration data. Pass calibration=..., or reconstruct='weights'."
        )
    if sequential is not None and reconstruct != "sequential":
        raise ConfigError(
            f"options of sequential reconstruction were given with reconstruct={reconstruct!r}. "
            "Pass reconstruct='sequential', or leave them out."
        )
    options = build_config(SequentialConfig, sequential, owner="sequential reconstruction")
    return reconstruct or ("data" if has_data else "weights"), options


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
    """

    model: nn.Module = field(repr=False)
    renewed: Renewal | None
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def apply_mode(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any] | None,
    mode: str,
    *,
    moments: Mapping[str, Moments] | None,
    sequential: SequentialConfig,
    batchnorm: bool = True,
    example_input: Any = None,
) -> Applied:
    """Apply a plan to a copy, options checked and moments (for mode "data") collected already, and prove it."""
    errors: dict[str, float] = {}
    notes: list[str] = []
    report_parameters(model)
    proof = _proof(model, plan, batches, example_input)
    suspects: list[str] | None = None if proof is None else []
    if mode == "sequential" and batches is not None:
        made = reconstruct_sequentially(model, plan, batches, sequential, suspects=suspects)
        new = made.model
        errors = {name: error for name, error in made.errors.items() if name in plan.factored}
        notes = [f"{name}: {note}" for name, note in made.notes.items()]
    else:
        twin = copy_model(model, instead="rankfold.apply_ with a plan")
        found = moments if mode == "data" else None
        new = _factored_(twin, plan, found, original=model, suspects=suspects)
    if proof is not None:
        proof.check(new, suspects or ())
    renewed = None
    if batchnorm and batches is not None and any(map(is_tracking_norm, new.modules())):
        renewed = reestimate_batchnorm(new, batches, model)
    return Applied(model=new, renewed=renewed, errors=errors, notes=notes)


def _factored_(
    model: nn.Module,
    plan: Plan,
    moments: Mapping[str, Moments] | None,
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> nn.Module:
    plan = replace(plan, provenance=replace(plan.provenance, reconstruct="data" if moments else "weights"))
    progress = partial(track, description="factoring")
    return apply_plan_(model, plan, moments, progress=progress, original=original, suspects=suspects)


def _proof(model: nn.Module, plan: Plan, batches: Iterable[Any] | None, example_input: Any) -> Proof | None:
    """Return the proof on the example input, or on the first calibration batch; None if there is neither."""
    if example_input is None and batches is not None:
        with evaluating(model):  # data may draw from torch's random state
            example_input = split_batch(next(iterate(batches, "calibration")))[0]
    return None if example_input is None else Proof(model, plan.factored, example_input)
