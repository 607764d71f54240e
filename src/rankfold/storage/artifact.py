"""Save a compressed model as plan and weights; rebuild it on a fresh instance of the original architecture."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankfold import methods
from rankfold._documents import parse_json
from rankfold._files import check_writable, write_atomic
from rankfold._grad_mode import trainable
from rankfold._hashing import tensor_hash
from rankfold._state import buffer_owners, extra_state, load_state_, own_state, register_late_buffers_
from rankfold._turns import in_turn
from rankfold.errors import CorruptArtifact, ModelError, PlanMismatch, RankfoldError, RankfoldWarning
from rankfold.inventory.wrappers import unwrap
from rankfold.records import Plan
from rankfold.storage.architecture import Settings, check_architecture, read_architecture, write_architecture
from rankfold.storage.state import stored_state
from rankfold.surgery import Proof, build, check_plan, copy_model, plan_of
from rankfold.surgery.apply import remember_plan, replace_layers
from rankfold.surgery.gauged import Gauged

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
_FORMAT = "rankfold"
_VERSION = 1
_LATE = "If the network builds layers in its first forward pass, run the new instance once before loading."
_PREFIXES = ("module.", "_orig_mod.")


@in_turn
def save(model: nn.Module, path: str | Path, *, plan: Plan | None = None) -> Path:
    """Write a compressed model to a folder.

    Parameters
    ----------
    model : Module
        A model made by `apply` or `compress`, possibly fine-tuned since; wrappers (DistributedDataParallel,
        torch.compile) are looked through.
    path : str or Path
        The folder; made if need be. An artefact that is there already is replaced.
    plan : Plan or None
        The plan that made the model; found on the model by default.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    RankfoldError
        If the model holds no factored layer, the path is a file, or the folder holds something else or cannot be
        written.

    Notes
    -----
    ``plan.json`` is the plan; ``model.safetensors`` holds every parameter and persistent buffer once (tied ones are
    recorded as aliases), a checksum of its tensors and the checksum of the plan it belongs to.
    """
    path = Path(path)
    model = unwrap(model)
    plan = plan_of(model) if plan is None else plan
    check_output(path)
    tensors, aliases = stored_state(model)
    text = plan.to_json()
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "plan_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tensors_sha256": tensor_hash(_with_aliases(tensors, aliases)),
        "aliases": json.dumps(aliases),
        "buffers": json.dumps(buffer_owners(model)),
        **write_architecture(model),
    }

    def write_weights(temporary: Path) -> None:
        try:
            save_file(tensors, str(temporary), metadata=metadata)
        except SafetensorError as error:  # its way to report that a disk is full
            raise OSError(str(error)) from error

    def write_plan(temporary: Path) -> None:
        # The weights take their place when the plan is on the disk already: an artefact that is there stays whole.
        temporary.write_text(text, encoding="utf-8")
        write_atomic(path / WEIGHTS_FILE, write_weights)

    write_atomic(path / PLAN_FILE, write_plan)
    return path


def check_output(path: str | Path) -> None:
    """Raise `RankfoldError` unless an artefact can be saved to a folder; nothing is written."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RankfoldError(f"cannot save to {str(path)!r}: it is a file. Give a folder.")
    check_writable(path)
    if not path.is_dir() or all(file.name.startswith(".") for file in path.iterdir()):
        return
    if not (path / PLAN_FILE).exists():
        raise RankfoldError(f"cannot save to {str(path)!r}: the folder holds other files. Give an empty or new folder.")
    try:
        Plan.load(path)
    except CorruptArtifact as error:
        raise RankfoldError(f"cannot save to {str(path)!r}: {error} Give an empty or new folder.") from error


@in_turn
@trainable
def load(path: str | Path, model: nn.Module, *, example_input: Any = None) -> nn.Module:
    """Rebuild a saved model on a fresh instance of the original architecture.

    Parameters
    ----------
    path : str or Path
        A folder written by `save`.
    model : Module
        The original architecture; its weights do not matter and it is left untouched.
    example_input : object, optional
        What the model is called with: a run then proves that the loaded layers are the ones that run
        (`rankfold.surgery.Proof`). Without it, only references that can be seen are checked.

    Returns
    -------
    Module
        The compressed model, on the device of `model` and in its train/eval mode.

    Raises
    ------
    CorruptArtifact
        If files are missing, truncated, edited or of another program.
    PlanMismatch
        If `model` is another architecture; every difference is named.
    ModelError
        If `model` is on the meta device, where nothing can be loaded to; or if the result would still run layers of
        `model`, such as by a `forward` that was set on the instance.
    """
    path = Path(path)
    for name, tensor in (*unwrap(model).named_parameters(), *unwrap(model).named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} of the model is on the meta device. Build the model on the CPU or an accelerator."
            )
    if not path.is_dir():
        raise CorruptArtifact(
            f"there is no artefact folder at {str(path)!r}. Give a folder that `rankfold compress` or rf.save wrote."
        )
    try:
        text = (path / PLAN_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CorruptArtifact(f"{str(path)!r} is no rankfold artefact: it has no {PLAN_FILE}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{str(path / PLAN_FILE)!r} cannot be read: {error}.") from error
    plan = Plan.from_json(text, source=str(path / PLAN_FILE))
    tensors, recorded, owners = _read_tensors(path / WEIGHTS_FILE, text)
    plan, tensors, recorded = _strip_prefixes(plan, tensors, recorded, model)
    original = unwrap(model)
    # Before the weights are loaded: the layers that are not factored decide as those of the original do.
    proof = None if example_input is None else Proof(original, plan.factored, example_input)
    suspects: list[str] | None = None if proof is None else []
    try:
        new = rebuild(copy_model(original), plan, original=original, suspects=suspects)
    except PlanMismatch as error:
        raise PlanMismatch(f"{error}\n{_LATE}") from error
    if proof is not None:
        proof.check(new, suspects or ())
    register_late_buffers_(new, tensors, owners)
    _load_tensors(new, tensors, path / WEIGHTS_FILE)
    check_architecture(new, recorded)
    return new


def rebuild(
    model: nn.Module, plan: Plan, *, original: nn.Module | None = None, suspects: list[str] | None = None
) -> nn.Module:
    """Give a model the structure of a plan in place, with uninitialised factors.

    `original` and `suspects` are those of `rankfold.surgery.exchange.exchange_`.
    """
    layers = check_plan(model, plan)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modules = {}
    for name, choice in plan.factored.items():
        layer = layers[name]
        blueprint = methods.chosen_blueprint(layer, choice)
        modules[name] = build(blueprint, layer, choice, dtype=getattr(torch, layer.dtype), device=device)
    return remember_plan(replace_layers(model, layers, modules, original=original, suspects=suspects), plan)


def _read_tensors(file: Path, plan_text: str) -> tuple[dict[str, Tensor], dict[str, Settings], dict[str, str]]:
    """Return the tensors of an artefact, what it records of the architecture, and the owners of its buffers."""
    if not file.is_file():
        raise CorruptArtifact(f"the artefact has no {file.name}; it is incomplete.")
    try:
        with safe_open(str(file), framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CorruptArtifact(f"{str(file)!r} was not written by rankfold.save.")
            if not metadata.get("version", "").isdigit() or int(metadata["version"]) > _VERSION:
                raise CorruptArtifact(
                    f"{str(file)!r} has version {metadata.get('version')!r}; this rankfold reads up to {_VERSION}. "
                    "Upgrade rankfold."
                )
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no iterator
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifact(f"{str(file)!r} is damaged: {error}. Copy or save the artefact again.") from error
    if metadata.get("plan_sha256") != hashlib.sha256(plan_text.encode()).hexdigest():
        raise CorruptArtifact(
            f"{PLAN_FILE} and {WEIGHTS_FILE} in {str(file.parent)!r} do not belong together; was the plan edited? "
            "An edited plan goes to `apply` with the original model."
        )
    try:
        tensors = _with_aliases(tensors, json.loads(metadata.get("aliases", "{}")))
    except (ValueError, KeyError, AttributeError) as error:
        raise CorruptArtifact(f"{str(file)!r} is damaged: {error}. Copy or save the artefact again.") from error
    if metadata.get("tensors_sha256") != tensor_hash(tensors):
        raise CorruptArtifact(
            f"{str(file)!r} is damaged: its checksum does not match. Copy or save the artefact again."
        )
    owners = parse_json(metadata.get("buffers", "{}"), source=f"the record of the buffers in {str(file)!r}")
    if not isinstance(owners, dict) or not all(isinstance(value, str) for value in owners.values()):
        raise CorruptArtifact(f"{str(file)!r} is damaged: its record of the buffers is malformed.")
    return tensors, read_architecture(metadata, str(file)), owners


def check_orders(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise `CorruptArtifact` if the channel indices of a gauged layer are no rearrangement of its channels."""
    for path, module in model.named_modules():
        name = f"{path}.order"
        if isinstance(module, Gauged) and name in tensors and not module.is_order(tensors[name]):
            raise CorruptArtifact(
                f"{source!r} is damaged: {name!r} does not name every channel once. Copy or save the artefact again."
            )


def _with_aliases(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    return {**tensors, **{name: tensors[source] for name, source in aliases.items()}}


def _strip_prefixes(
    plan: Plan, tensors: dict[str, Tensor], recorded: dict[str, Settings], model: nn.Module
) -> tuple[Plan, dict[str, Tensor], dict[str, Settings]]:
    """Drop wrapper prefixes that the artefact has and the model has not, and say so."""
    names = [name for name, _ in unwrap(model).named_modules()]
    for prefix in _PREFIXES:
        if tensors and all(n.startswith(prefix) for n in tensors) and not any(n.startswith(prefix) for n in names):
            warnings.warn(
                f"stripped the wrapper prefix {prefix!r} from every name of the artefact", RankfoldWarning, stacklevel=5
            )
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
            recorded = {n.removeprefix(prefix): settings for n, settings in recorded.items()}
            plan = replace(
                plan,
                layers={n.removeprefix(prefix): c for n, c in plan.layers.items()},
                fingerprint={n.removeprefix(prefix): f for n, f in plan.fingerprint.items()},
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
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise PlanMismatch(  # the file itself is sound: its checksum has been compared
            f"{str(file)!r} does not fit the model that its plan describes:\n  " + "\n  ".join(shown) + "\n"
            f"Load it into a fresh instance of the architecture that was compressed. {_LATE}"
        )
    check_orders(model, tensors, str(file))
    differing = {f"{tensors[n].dtype} -> {t.dtype}" for n, t in expected.items() if tensors[n].dtype != t.dtype}
    if differing:
        warnings.warn(
            f"data types are converted on loading: {', '.join(sorted(differing))}", RankfoldWarning, stacklevel=5
        )
    load_state_(model, tensors)
