"""Save a compressed model as plan and weights, and rebuild it on a fresh instance of the original architecture."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold._state import buffer_owners, extra_state, load_state_, own_state, register_late_buffers_
from rankfold._turns import in_grad_turn, in_turn
from rankfold.errors import ConfigError, CorruptArtifact, ModelError, PlanMismatch, RankfoldWarning
from rankfold.inventory.kinds import is_lazy
from rankfold.inventory.weights import find_module
from rankfold.inventory.wrappers import unwrap
from rankfold.records import Plan
from rankfold.storage.architecture import FRESH, Settings, check_architecture, read_architecture, write_architecture
from rankfold.storage.folder import PLAN_FILE, Describe, check_output, find, replace_artifact
from rankfold.storage.network import guards, network_of, without_guards
from rankfold.storage.state import stored_state
from rankfold.storage.weights import Weights, weights_metadata
from rankfold.surgery import Proof, build, check_plan, copy_model, plan_of
from rankfold.surgery.apply import inner_plan, remember_plan, replace_layers
from rankfold.surgery.exchange import listed
from rankfold.surgery.gauged import Gauged
from rankfold.surgery.narrowed import narrowed_copy
from rankfold.surgery.saving import save_pretrained_with

_SLACK, _MOST_BYTES = 16 * 2**20, 64  # factors in float64 may take several times the space of the layer's weights
_LATE = (
    "If the network creates layers or resizes buffers in its forward pass, run the new instance once before loading, "
    "on an input of the same size."
)
_PREFIXES = ("module.", "_orig_mod.")


@in_turn
def save(model: nn.Module, path: str | Path, *, plan: Plan | None = None) -> Path:
    """Write a compressed model to a folder.

    Parameters
    ----------
    model : Module
        A model returned by `apply` or `compress`, possibly fine-tuned since; wrappers (DistributedDataParallel,
        torch.compile) are ignored.
    path : str or Path
        The folder; it is created if necessary. An existing artifact is replaced.
    plan : Plan or None
        The plan of the model; by default the one attached to the model.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    RankfoldError
        If the model has no factored layer, the path is a file, or the folder contains other files or cannot be written.

    Notes
    -----
    ``config.json`` records a network of timm or transformers by name, for `load_pretrained`. Its weights file then has
    an empty tensor in the place of each factored weight, so that the original network does not accept it.

    ``plan.json`` is the plan; ``model.safetensors`` contains every parameter and persistent buffer once (tied ones are
    recorded as aliases), a checksum of its tensors and the checksum of its plan. Both files are replaced in one step:
    if the process is killed, the folder contains the complete old or the complete new artifact. Processes that save to
    the same folder wait for each other, and `load` can run at any time (see `rankfold.storage.folder`). A
    ``config.json``, ``source.json``, ``report.json`` or ``report.html`` that describes another artifact is removed.
    """
    save_described(model, path, plan=plan)
    return Path(path)


@in_turn
def save_described(
    model: nn.Module,
    path: str | Path,
    *,
    plan: Plan | None = None,
    describe: Describe | None = None,
    shared: bool = False,
) -> str:
    """Save a model like `save`, together with files that describe the artifact, and return its checksum.

    `shared` is that of `check_output`.
    """
    path = Path(path)
    model = unwrap(model)
    plan = plan_of(model) if plan is None else plan
    check_output(path, shared=shared)
    tensors, aliases = stored_state(model)
    network = network_of(model)
    if network is not None:
        tensors |= guards(plan, (*tensors, *aliases))

    def companions(artifact: str) -> dict[str, str]:
        recorded = {} if network is None else network.texts(artifact)
        return {**recorded, **({} if describe is None else describe(artifact))}

    text = plan.to_json()
    more = {"buffers": json.dumps(buffer_owners(model)), **write_architecture(model)}
    metadata = weights_metadata(tensors, aliases, text, more)
    return replace_artifact(path, text, tensors, metadata, companions)


def _save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    is_main_process: bool = True,
    state_dict: object = None,
    safe_serialization: bool = True,
    push_to_hub: bool = False,
    max_shard_size: object = None,  # noqa: ARG001 - there is one file
    **others: object,
) -> bool:
    """Save like ``save_pretrained`` of transformers; return False if `load_pretrained` could not build the network.

    Raises
    ------
    ConfigError
        If an argument asks for something else than the model's own weights in a safetensors file.
    """
    if network_of(model) is None:
        return False
    asked = {"state_dict": state_dict is not None, "safe_serialization": not safe_serialization}
    asked |= {"push_to_hub": push_to_hub, **{name: value is not None for name, value in others.items()}}
    if wrong := [name for name, value in asked.items() if value]:
        raise ConfigError(
            f"save_pretrained of a compressed model writes the model's own weights to a local folder. Leave out "
            f"{', '.join(wrong)}."
        )
    if is_main_process:
        save_described(model, folder, shared=True)
    return True


save_pretrained_with(_save_pretrained)


@in_grad_turn
def load(path: str | Path, model: nn.Module, *, example_input: Any = None) -> nn.Module:
    """Rebuild a saved model on a fresh instance of the original architecture.

    Parameters
    ----------
    path : str or Path
        A folder written by `save`.
    model : Module
        The original architecture, with any weights; it is left unchanged.
    example_input : object, optional
        An input for the model. A run on it verifies that the loaded layers are the ones that run
        (`rankfold.surgery.Proof`). Without it, only visible references to layers are checked.

    Returns
    -------
    Module
        The compressed model, on the device of `model` and in its train/eval mode.

    Raises
    ------
    CorruptArtifact
        If files are missing, truncated, edited or written by another program.
    PlanMismatch
        If `model` has another architecture; the message lists the differences.
    ModelError
        If `model` is on the meta device, or if the result would still run layers of `model`, for example because
        ``forward`` was set on the instance.
    """
    path = Path(path)
    for name, tensor in (*unwrap(model).named_parameters(), *unwrap(model).named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"{name!r} of the model is on the meta device. Build it on the CPU or an accelerator.")
    text, weights = find(path)
    plan = Plan.from_json(text, source=str(path / PLAN_FILE))
    _check_size(weights, model)
    tensors, recorded = without_guards(plan, weights.tensors()), read_architecture(weights.metadata, str(weights.file))
    owners = weights.buffer_owners()
    plan, tensors, recorded = _strip_prefixes(plan, tensors, recorded, model)
    try:
        new = _rebuilt(unwrap(model), plan, example_input)
    except PlanMismatch as error:
        raise PlanMismatch(f"{error}\n{_LATE}") from error
    register_late_buffers_(new, tensors, owners)
    _load_tensors(new, tensors, weights.file)
    check_architecture(new, recorded)
    return new


def _rebuilt(original: nn.Module, plan: Plan, example_input: Any) -> nn.Module:
    """Return a copy of a model with the structure of a plan, with the values of `original` outside of factors.

    Proofs run before the weights are loaded, so that layers that are not factored act like the original's.
    """
    check_plan(original, plan)
    if plan.narrowing:
        narrow = narrowed_copy(original, plan.narrowing, example_input)
        return remember_plan(_rebuilt(narrow, inner_plan(plan), example_input), plan)
    proof = None if example_input is None else Proof(original, plan.factored, example_input)
    suspects: list[str] | None = None if proof is None else []
    copied = copy_model(original, blank=_replaced(original, plan))
    new = rebuild(copied, plan, original=original, suspects=suspects)
    if proof is not None:
        proof.check(new, suspects or ())
    return new


def rebuild(
    model: nn.Module, plan: Plan, *, original: nn.Module | None = None, suspects: list[str] | None = None
) -> nn.Module:
    """Give a model the structure of a plan in place, with uninitialized factors.

    `original` and `suspects` are as in `rankfold.surgery.exchange.exchange_`.
    """
    layers = check_plan(model, plan)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modules = {}
    for name, choice in plan.factored.items():
        layer = layers[name]
        blueprint = methods.chosen_blueprint(layer, choice)
        modules[name] = build(blueprint, layer, choice, dtype=getattr(torch, layer.dtype), device=device)
    return remember_plan(replace_layers(model, layers, modules, original=original, suspects=suspects), plan)


def _replaced(model: nn.Module, plan: Plan) -> list[nn.Parameter]:
    """Return the weights that `rebuild` replaces by factors, so that they need not be copied."""
    layers = (find_module(model, name) for name in plan.factored)
    weights = (layer._parameters.get("weight") for layer in layers if layer is not None)
    return [weight for weight in weights if weight is not None]


def _check_size(weights: Weights, model: nn.Module) -> None:
    """Raise `PlanMismatch` if the weights file is far too large for a model, before it is read."""
    tensors = (*model.parameters(), *model.buffers())
    if any(map(is_lazy, tensors)):
        raise PlanMismatch(f"the model has lazy modules that are not initialized. {_LATE}")
    elements = sum(tensor.numel() for tensor in tensors)
    if weights.size > _SLACK + _MOST_BYTES * elements:
        raise PlanMismatch(
            f"{str(weights.file)!r} has {weights.size:,} bytes, far more than any compressed form of a model with "
            f"{elements:,} elements. {FRESH}"
        )


def check_orders(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise `CorruptArtifact` if the channel indices of a gauged layer are not a permutation of its channels."""
    for path, module in model.named_modules():
        name = f"{path}.order"
        if isinstance(module, Gauged) and name in tensors and not module.is_order(tensors[name]):
            raise CorruptArtifact(
                f"{source!r} is damaged: {name!r} is not a permutation of channels. Copy or save the artifact again."
            )


def _strip_prefixes(
    plan: Plan, tensors: dict[str, Tensor], recorded: dict[str, Settings], model: nn.Module
) -> tuple[Plan, dict[str, Tensor], dict[str, Settings]]:
    """Remove wrapper prefixes that the artifact has but the model does not, with a warning."""
    names = [name for name, _ in unwrap(model).named_modules()]
    for prefix in _PREFIXES:
        if tensors and all(n.startswith(prefix) for n in tensors) and not any(n.startswith(prefix) for n in names):
            warnings.warn(
                f"stripped the wrapper prefix {prefix!r} from every name of the artifact", RankfoldWarning, stacklevel=5
            )
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
            recorded = {n.removeprefix(prefix): settings for n, settings in recorded.items()}
            plan = replace(
                plan,
                layers={n.removeprefix(prefix): c for n, c in plan.layers.items()},
                fingerprint={n.removeprefix(prefix): f for n, f in plan.fingerprint.items()},
                narrowing=plan.narrowing.unprefixed(prefix),
            )
    return plan, tensors, recorded


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    expected = own_state(model) | extra_state(model)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:  # the file itself is intact: its checksum has been verified
        raise PlanMismatch(
            f"{str(file)!r} does not fit the model that its plan describes:\n{listed(problems, 20)}\n{FRESH} {_LATE}"
        )
    check_orders(model, tensors, str(file))
    for name, tensor in expected.items():
        if not torch.can_cast(tensors[name].dtype, tensor.dtype):
            raise PlanMismatch(
                f"{name!r} in {str(file)!r} is {tensors[name].dtype}, which cannot be cast to {tensor.dtype}. {FRESH}"
            )
    differing = {f"{tensors[n].dtype} -> {t.dtype}" for n, t in expected.items() if tensors[n].dtype != t.dtype}
    if differing:
        warnings.warn(
            f"data types are converted on loading: {', '.join(sorted(differing))}", RankfoldWarning, stacklevel=5
        )
    load_state_(model, tensors)
