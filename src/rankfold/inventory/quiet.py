"""Running a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._batches import call_model, copied, model_device, tensors_of, to_device
from rankfold.errors import ModelError, RankfoldError
from rankfold.inventory.kinds import hooked_names, is_lazy


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients; afterwards everything is as it was.

    Restored are training flags, ``requires_grad``, buffers, weights that a forward renormalises,
    torch's random states, and the switch of the fused attention, which is off inside: it would
    bypass the layers. The flags are set one by one, because ``train()`` may be overridden to do
    more.
    """
    with ExitStack() as stack:
        stack.enter_context(_saved_attributes(model))
        stack.enter_context(_saved_tensors(model))
        stack.enter_context(_saved_random_state(model))
        stack.enter_context(fused_attention_off())
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def fused_attention_off() -> Iterator[None]:
    """Switch torch's fused inference path of attention and transformer layers off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _saved_attributes(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    training = [(module, module.training) for module in modules]
    gradients = [(p, p.requires_grad) for p in model.parameters()]
    # `module.compile()` would compile the hooks and the counter with the model.
    compiled = [(m, vars(m)["_compiled_call_impl"]) for m in modules if _is_compiled(m)]
    computed = [(m, name, vars(m)[name]) for m in modules for name in hooked_names(m) if name in vars(m)]
    try:
        for module, _ in training:
            module.training = False
        for module, _ in compiled:
            vars(module)["_compiled_call_impl"] = None
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for module, call in compiled:
            vars(module)["_compiled_call_impl"] = call
        for module, name, weight in computed:
            vars(module)[name] = weight


def _is_compiled(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None


@contextmanager
def _saved_tensors(model: nn.Module) -> Iterator[None]:
    """Restore buffers, and the weights of embeddings that renormalise the rows they look up."""
    held: list[tuple[nn.Module, str, Tensor | None]] = []
    for module in model.modules():
        held += [(module, name, buffer) for name, buffer in module._buffers.items()]
    kept = [buffer for _, _, buffer in held if buffer is not None and not is_lazy(buffer)]
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            kept.append(module.weight)
    # Nothing can write to an inference tensor here.
    saved = [(tensor, tensor.detach().clone()) for tensor in kept if not tensor.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in saved:
                # Versions do not tell: batch norm writes its statistics without counting it up.
                # Writing regardless would spoil a backward pass that the user has still to run.
                if not torch.equal(tensor, copy):
                    tensor.copy_(copy)
        for module, name, buffer in held:
            module._buffers[name] = buffer


@contextmanager
def _saved_random_state(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    kind = next((d.type for d in devices if d.type in ("cuda", "xpu")), "cuda")
    indices = sorted({d.index for d in devices if d.type == kind})
    with torch.random.fork_rng(indices, device_type=kind):
        yield


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
        return call_model(model, copied(on_device_of(model, example_input)))
    except Exception as error:
        raise ModelError(
            f"the model cannot run on the example input, {describe(example_input)}. "
            f"It raised {type(error).__name__}: {error}\n"
            "Give an example input that the model takes: a tuple holds positional arguments, a "
            "dict keyword arguments, anything else is the one argument."
        ) from error


def run_batch(model: nn.Module, inputs: Any, what: str) -> Any:
    """Call a model as it is on a copy of one batch's inputs, which it may change; a failure becomes a `ModelError`.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : object
        As `call_model` takes them, on the model's device.
    what : str
        What the inputs are, in the user's words, such as ``"calibration batch 3"``.
    """
    try:
        return call_model(model, copied(inputs))
    except RankfoldError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model cannot run on {what}, {describe(inputs)}. It raised {type(error).__name__}: {error}\n"
            "Give batches (inputs, target) or inputs alone, of inputs that the model takes."
        ) from error


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
