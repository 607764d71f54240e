"""Begin a network's forward pass in the middle: what lies before a layer is computed once, not once per candidate.

No graph is traced. While the network runs up to the layer, the output of every module that is finished by then is
kept, the outermost only: a finished block covers what is inside it. In a replay these modules answer from memory,
whatever they are given. Everything else (the layer, all that follows, the few operations between modules) runs as
always. Control flow, several inputs, several outputs and residual connections need no special care.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from rankfold._tensors import copied, detached
from rankfold.inventory import run_batch

Memory = Mapping[nn.Module, list[Any]]
"""What finished modules put out before a layer was called, call by call."""


class _Reached(BaseException):
    """Ends a forward pass; no model catches it."""


def run_before(
    model: nn.Module, layers: Collection[nn.Module], inputs: Any, what: str, *, watched: Collection[nn.Module] = ()
) -> Memory:
    """Run a model until one of some modules is called, and return what was finished by then; nothing if none is called.

    Parameters
    ----------
    model : Module
        The model, in the mode and with the gradient setting that it is to run in.
    layers : collection of Module
        The pass ends with the first call of one of these.
    inputs : object
        One batch's inputs, on the model's device.
    what : str
        What the inputs are, for messages.
    watched : collection of Module
        Modules that are to be called in a replay too, because somebody has hooks there: a block around one of them is
        not remembered as a whole.
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

    with _forwards(model, recording), suppress(_Reached):
        run_batch(model, inputs, what)
        return {}
    memory: dict[nn.Module, list[Any]] = defaultdict(list)
    for module, output in finished:
        memory[module].append(output)
    return memory


@contextmanager
def remembering(model: nn.Module, memory: Memory) -> Iterator[None]:
    """Let finished modules answer from memory for one forward pass inside the block."""

    def answering(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if module not in memory:
            return None
        answers = iter(memory[module])
        missing = object()

        def answer(*args: Any, **kwargs: Any) -> Any:
            known = next(answers, missing)
            return forward(*args, **kwargs) if known is missing else copied(known)

        return answer

    with _forwards(model, answering):
        yield


@contextmanager
def _forwards(
    model: nn.Module, wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any] | None]
) -> Iterator[None]:
    """Replace the forward method of a model's modules; hooks run around the new ones as around the old."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # its forward is compiled and stays
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
