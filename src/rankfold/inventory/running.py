"""Run a model and leave it unchanged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold._progress import track
from rankfold._tensors import copied, detached, model_device, tensors_of, to_device
from rankfold._turns import resting, turn
from rankfold.batches import call_model, iterate, split_batch
from rankfold.errors import ModelError, RankfoldError
from rankfold.inventory.kinds import dtype_name, is_lazy
from rankfold.inventory.state import KeptState
from rankfold.inventory.weights import in_eval


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], object]]:
    """Run the block as `evaluating` does, and make every layer call its hooks.

    ``module.compile()`` and torch's fused attention, which bypass layers and their hooks, are disabled inside it.
    """
    compiled = [(m, call) for m in model.modules() if (call := vars(m).get("_compiled_call_impl")) is not None]
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
) -> Iterator[Callable[[], object]]:
    """Run the block with the model in evaluation mode and without gradients, and restore everything afterwards.

    Restored are the model's state (`KeptState`), training flags and ``requires_grad``, and the random states of torch,
    Python and NumPy.

    Recurrent state, caches and counters must not carry over from one batch to the next, so that every batch sees the
    same model and two compared models start equal. Call the function that the block receives after each batch.

    Parameters
    ----------
    model : Module
        The model.
    without : sequence of Module
        Modules whose state may change.
    differentiable : bool
        Whether the model may differentiate in its forward (`without_gradients`). If False, the block runs under
        ``torch.no_grad``, which also affects other models.

    Yields
    ------
    callable
        Restores the model's state.
    """
    with in_eval(model):
        state = KeptState(model, without=without)
        with _saved_random_state(model), without_gradients(state.parameters, differentiable=differentiable):
            try:
                yield state.reset
            finally:
                state.reset()


@contextmanager
def without_gradients(parameters: Iterable[Tensor], *, differentiable: bool = True) -> Iterator[None]:
    """Run the block with parameters that do not require gradients, and restore their flags.

    Unlike ``torch.no_grad``, which `differentiable=False` uses instead, this allows a model to differentiate inside its
    forward (forces from energies). Its outputs may then have a graph: detach them.
    """
    flags = [(p, p.requires_grad) for p in parameters if not is_lazy(p)]
    enabled = differentiable and not any(p.is_inference() for p, _ in flags)  # autograd cannot save inference tensors
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        try:
            for parameter, flag in flags if differentiable else ():
                if flag and parameter.is_leaf and not parameter.is_inference():
                    parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)


def measure(model: nn.Module, metric: Callable[[nn.Module], Any]) -> Any:
    """Return the result of a metric for a model in evaluation mode, without gradients, and restore the model.

    The metric runs under ``torch.no_grad``. If it fails because gradients are missing, the model differentiates in its
    forward (forces from energies), and the metric is called again with gradients enabled.
    """
    try:
        with evaluating(model, differentiable=False), resting():
            return metric(model)
    except (RuntimeError, AssertionError) as error:
        if "grad" not in str(error):  # torch: "... does not require grad"
            raise
    with evaluating(model), resting():
        return metric(model)


@contextmanager
def fused_attention_off() -> Iterator[None]:
    """Disable torch's fused inference path of attention and transformer layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


def call_example(model: nn.Module, example_input: Any) -> Any:
    """Return a model's detached output for a copy of an example input, in its present mode.

    Parameters
    ----------
    model : nn.Module
        The model.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument. Its tensors are moved to
        the model's device unless the model lies on several.

    Raises
    ------
    ModelError
        If the model fails; the message describes the example input and repeats the model's error.
    """
    try:
        return detached(call_model(model, copied(detached(on_device_of(model, example_input)))))
    except Exception as error:
        raise example_failure("the model", example_input, error) from error


def example_failure(which: str, example_input: Any, error: Exception) -> ModelError:
    """Return the error for a model that failed on an example input."""
    advice = (
        f"Correct {spelled('example_input')} so that the model accepts it. In Python, a tuple holds positional "
        "arguments, a dict holds keyword arguments, and anything else is a single argument."
    )
    if _misses_gradients(error):
        advice = (
            "It differentiates by its own parameters, which have no gradients while rankfold runs it "
            "(requires_grad=False). Differentiate by the inputs, or by copies: p.detach().requires_grad_()."
        )
    return ModelError(
        f"{which} cannot run on the example input, {describe(example_input)}. "
        f"It raised {type(error).__name__}: {error}\n{advice}"
    )


def _misses_gradients(error: Exception) -> bool:
    """Whether a model failed because a tensor requires no gradient."""
    return any(part in str(error) for part in ("not require grad", "not have been used in the graph"))


def run_batch(model: nn.Module, inputs: Any, what: str, *, graph: bool = False, example: Any = None) -> Any:
    """Return a model's output for a copy of one batch's inputs, in its present mode.

    `what` names the inputs in the error message, such as ``"calibration batch 3"``. With `graph`, outputs keep their
    graph. `example` are inputs on which the model runs, for the message.

    Raises
    ------
    ModelError
        If the model fails.
    """
    try:
        output = call_model(model, copied(detached(inputs)))
    except RankfoldError:
        raise
    except Exception as error:
        runs = "" if example is None else f", though it runs on the example input, {describe(example)}"
        raise ModelError(
            f"the model cannot run on {what}, {describe(inputs)}{runs}. It raised {type(error).__name__}: {error}\n"
            "Pass batches (inputs, target) or inputs alone that the model accepts."
        ) from error
    return output if graph else detached(output)


def model_inputs(
    model: nn.Module, batches: Iterable[Any], purpose: str, description: str
) -> Iterator[tuple[Any, Any | None]]:
    """Yield the inputs of every batch on the model's device, with the target or None, and show the progress.

    `purpose` names the data and `description` the loop, in the user's words.
    """
    device = model_device(model)
    for batch in track(iterate(batches, purpose), description, length_hint(batches) or None):
        inputs, target = split_batch(batch)
        yield to_device(inputs, device), target


def on_device_of(model: nn.Module, example_input: Any) -> Any:
    """Return the input on the model's device, unchanged if the model lies on several devices or none."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return to_device(example_input, *devices) if len(devices) == 1 else example_input


def describe(obj: Any) -> str:
    """Return an input in words, such as ``(1x3x224x224 float32, mask: 1x16 bool)``."""
    if isinstance(obj, Tensor):
        return f"{'x'.join(map(str, obj.shape)) or 'scalar'} {dtype_name(obj)}"
    if isinstance(obj, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in obj.items()) + "}"
    if isinstance(obj, tuple | list):
        brackets = "()" if isinstance(obj, tuple) else "[]"
        return brackets[0] + ", ".join(map(describe, obj)) + brackets[1]
    return type(obj).__name__ if tensors_of(obj) else repr(obj)
