"""Start a network's forward pass in the middle: the part before a layer is computed once, not once per candidate.

No graph is traced. While the network runs up to the layer, the output of every finished module is kept; a finished
block covers the modules inside it. In a replay, these modules return the recorded outputs, whatever their inputs.
Everything else (the layer, what follows it, the operations between modules) runs as usual. Control flow, multiple
inputs and outputs, and residual connections need no special treatment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._tensors import copied, detached
from rankfold.inventory import run_batch

Memory = Mapping[nn.Module, list[Any]]
"""The outputs of the modules that finished before a layer was called, call by call."""


class _Reached(BaseException):
    """Ends a forward pass; no model catches it."""


def run_before(
    model: nn.Module, layers: Collection[nn.Module], inputs: Any, what: str, *, watched: Collection[nn.Module] = ()
) -> Memory:
    """Run a model until one of `layers` is called, and return the outputs recorded by then; none if none is called.

    Parameters
    ----------
    model : Module
        The model, in the mode and with the gradient setting that it should run in.
    layers : collection of Module
        The pass ends at the first call of one of these.
    inputs : object
        One batch's inputs, on the model's device.
    what : str
        The description of the inputs in messages.
    watched : collection of Module
        Modules with hooks, which must run in a replay too: a block around one of them is not recorded as a whole.
    """
    around = {m for m in model.modules() if any(part in watched for part in m.modules() if part is not m)}
    finished: list[tuple[nn.Module, Any]] = []

    def recording(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            if module in layers:
                raise _Reached
            start = len(finished)
            output = forward(*args, **kwargs)
            if module not in around:
                finished[start:] = [(module, copied(detached(output)))]
            return output

        return record

    with wrapped_forwards(model, recording), suppress(_Reached):
        run_batch(model, inputs, what)
        return {}
    memory: dict[nn.Module, list[Any]] = defaultdict(list)
    for module, output in finished:
        memory[module].append(output)
    return memory


@contextmanager
def remembering(model: nn.Module, memory: Memory) -> Iterator[None]:
    """Let finished modules return their recorded outputs, for one forward pass inside the block."""

    def answering(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if module not in memory:
            return None
        answers = iter(memory[module])
        missing = object()

        def answer(*args: Any, **kwargs: Any) -> Any:
            output = next(answers, missing)
            return forward(*args, **kwargs) if output is missing else copied(output)

        return answer

    with wrapped_forwards(model, answering):
        yield


def faithful(whole: Sequence[Tensor], replayed: Sequence[Tensor]) -> bool:
    """Return whether the results of a whole run and of a replay are equal up to rounding."""
    return len(whole) == len(replayed) and all(map(_close, whole, replayed))


def _close(whole: Tensor, replayed: Tensor) -> bool:
    if whole.shape != replayed.shape:
        return False
    finite = whole.detach()[whole.isfinite()]
    slack = 1e-5 * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(whole, replayed, rtol=1e-4, atol=slack, equal_nan=True)


@contextmanager
def wrapped_forwards(
    model: nn.Module, wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any] | None]
) -> Iterator[None]:
    """Replace the forward methods of a model's modules; hooks still run around the new methods."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # its compiled forward cannot be replaced
                continue
            new = wrap(module, module.forward)
            if new is not None:
                changed.append((module, vars(module).get("forward")))
                vars(module)["forward"] = new
        yield
    finally:
        for module, own in changed:
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
