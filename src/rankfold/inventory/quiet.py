"""Running a model without leaving a trace in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold._progress import track
from rankfold._tensors import copied, detached, model_device, tensors_of, to_device
from rankfold._turns import resting, turn
from rankfold.batches import call_model, iterate, split_batch
from rankfold.errors import ModelError, RankfoldError
from rankfold.inventory.kinds import is_lazy
from rankfold.inventory.state import KeptState


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a model into the state in which its layers can be watched; afterwards everything is as it was.

    As `evaluating`; besides, ``module.compile()`` and the fused attention are off inside: they would bypass the layers
    and the hooks there.
    """
    compiled = [(m, vars(m)["_compiled_call_impl"]) for m in model.modules() if _is_compiled(m)]
    try:
        for module, _ in compiled:
            vars(module)["_compiled_call_impl"] = None
        with turn(firm=True), evaluating(model) as reset, fused_attention_off():
            yield reset
    finally:
        for module, call in compiled:
            vars(module)["_compiled_call_impl"] = call


@contextmanager
def evaluating(
    model: nn.Module, *, without: Sequence[nn.Module] = (), differentiable: bool = True
) -> Iterator[Callable[[], None]]:
    """Run the block with the model in evaluation mode and without gradients, leaving no trace.

    Afterwards the model is as before, in all that a forward pass can change (`KeptState`, training flags,
    ``requires_grad``), and so are the random states of torch, Python and NumPy. The flags are set one by one, because
    ``train()`` may be overridden to do more.

    Every batch is to meet the model in the state that it was handed over with: recurrent state, caches and counters do
    not pass from one batch to the next, and two models that are compared start equal. So call what the block gets after
    each batch.

    Parameters
    ----------
    model : Module
        The model.
    without : sequence of Module
        Modules whose state may change.
    differentiable : bool
        Whether the model may differentiate in its forward (`without_gradients`); False is ``torch.no_grad``, which
        also holds for everything else that runs.

    Yields
    ------
    callable
        Puts the model's state back.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        state = KeptState(model, without=without)
        off = without_gradients(state.parameters) if differentiable else _no_grad(state.parameters)
        with _saved_random_state(model), off:
            try:
                yield state.reset
            finally:
                state.reset()
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def without_gradients(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let none of a model's parameters require gradients, so that its outputs have no graph; the flags are restored.

    Unlike ``torch.no_grad`` this leaves a model the means to differentiate inside its forward (forces from energies).
    What it returns may then have a graph of its own: detach it.
    """
    parameters = [p for p in parameters if not is_lazy(p)]
    made_in_inference = any(p.is_inference() for p in parameters)  # of these autograd can keep nothing
    with torch.inference_mode(False), torch.set_grad_enabled(not made_in_inference), _kept_flags(parameters):
        for parameter in parameters:
            if parameter.requires_grad and parameter.is_leaf and not parameter.is_inference():
                parameter.requires_grad_(False)
        yield


@contextmanager
def _no_grad(parameters: Iterable[Tensor]) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), _kept_flags(parameters):
        yield


@contextmanager
def _kept_flags(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Restore which parameters require gradients."""
    flags = [(p, p.requires_grad) for p in parameters if not is_lazy(p)]
    try:
        yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def measure(model: nn.Module, metric: Callable[[nn.Module], Any]) -> Any:
    """Return what a metric returns for a model, in evaluation mode and without gradients, leaving no trace.

    The metric runs under ``torch.no_grad``, as other networks that it calls should. If it fails for want of gradients,
    the model differentiates in its forward (forces from energies), and the metric is called again with gradients on.
    """
    try:
        with evaluating(model, differentiable=False), resting():
            return metric(model)
    except (RuntimeError, AssertionError) as error:
        if "grad" not in str(error):  # "... does not require grad", in torch's words
            raise
    with evaluating(model), resting():
        return metric(model)


@contextmanager
def fused_attention_off() -> Iterator[None]:
    """Switch torch's fused inference path of attention and transformer layers off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_compiled(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None


@contextmanager
def _saved_random_state(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    kind = next((d.type for d in devices if d.type in ("cuda", "xpu")), "cuda")
    indices = sorted({d.index for d in devices if d.type == kind})
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a model may draw from it
    with torch.random.fork_rng(indices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def run_example(model: nn.Module, example_input: Any) -> Any:
    """Call a model on an example input, in eval mode, and leave the model as it was.

    Parameters
    ----------
    model : nn.Module
        The model.
    example_input : object
        A tuple holds positional arguments, a mapping keyword arguments; anything else is the one
        argument. Its tensors are moved to the model's device if the model is on one device only.

    Returns
    -------
    object
        What the model returns.

    Raises
    ------
    ModelError
        If the model fails; the message describes the example input and repeats the model's own.
    """
    with undisturbed(model):
        return call_example(model, example_input)


def call_example(model: nn.Module, example_input: Any) -> Any:
    """Call a model as `run_example` does, as it is, on a copy of the input; a failure becomes a `ModelError`."""
    try:
        return detached(call_model(model, copied(detached(on_device_of(model, example_input)))))
    except Exception as error:
        raise example_failure("the model", example_input, error) from error


def example_failure(which: str, example_input: Any, error: Exception) -> ModelError:
    """Return what says that a model failed on an example input."""
    return ModelError(
        f"{which} cannot run on the example input, {describe(example_input)}. "
        f"It raised {type(error).__name__}: {error}\n"
        "Give an example input that the model takes: a tuple holds positional arguments, a "
        "dict keyword arguments, anything else is the one argument."
    )


def run_batch(model: nn.Module, inputs: Any, what: str, *, graph: bool = False) -> Any:
    """Call a model as it is on a copy of one batch's inputs, which it may change; a failure becomes a `ModelError`.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : object
        As `call_model` takes them, on the model's device.
    what : str
        What the inputs are, in the user's words, such as ``"calibration batch 3"``.
    graph : bool
        Whether outputs keep the graph that they may have.
    """
    try:
        output = call_model(model, copied(detached(inputs)))
    except RankfoldError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model cannot run on {what}, {describe(inputs)}. It raised {type(error).__name__}: {error}\n"
            "Give batches (inputs, target) or inputs alone, of inputs that the model takes."
        ) from error
    return output if graph else detached(output)


def model_inputs(
    model: nn.Module, batches: Iterable[Any], purpose: str, description: str
) -> Iterator[tuple[Any, Any | None]]:
    """Yield every batch's inputs, on the model's device, and its target, and show the progress.

    Parameters
    ----------
    model : nn.Module
        The model that is run.
    batches : iterable
        The data (`rankfold.batches`).
    purpose, description : str
        What the data is for, and what the loop does, in the user's words.
    """
    device = model_device(model)
    for batch in track(iterate(batches, purpose), description, length_hint(batches) or None):
        inputs, target = split_batch(batch)
        yield to_device(inputs, device), target


def on_device_of(model: nn.Module, example_input: Any) -> Any:
    """Return the input on the model's device; as it is if the model lies on several or none."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return to_device(example_input, model_device(model)) if len(devices) == 1 else example_input


def describe(obj: Any) -> str:
    """Return an input in words, such as ``(1x3x224x224 float32, mask: 1x16 bool)``."""
    if isinstance(obj, Tensor):
        size = "x".join(map(str, obj.shape)) if obj.ndim else "scalar"
        return f"{size} {str(obj.dtype).removeprefix('torch.')}"
    if isinstance(obj, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in obj.items()) + "}"
    if isinstance(obj, tuple | list):
        brackets = "()" if isinstance(obj, tuple) else "[]"
        return brackets[0] + ", ".join(map(describe, obj)) + brackets[1]
    return type(obj).__name__ if tensors_of(obj) else repr(obj)
