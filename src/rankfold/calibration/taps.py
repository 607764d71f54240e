"""Run a model up to some layers, and take their inputs or outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rankfold.calibration.flow import OtherTerm, first_tensor
from rankfold.inventory import run_batch


@dataclass(slots=True, kw_only=True, eq=False)
class Tap:
    """What is to be taken at one layer, and what has been.

    Parameters
    ----------
    modules : sequence of Module
        The modules that compute with the layer's weight.
    outputs : bool
        Whether to take the output of each call, next to its input.
    calls : int
        The number of calls to take.
    joins : bool
        Whether to take what the output is added to as well.
    norm : Module or None
        The BatchNorm between the output and that sum.
    """

    modules: Sequence[nn.Module]
    outputs: bool
    calls: int
    joins: bool = False
    norm: nn.Module | None = None
    taken: list[tuple[Tensor, ...]] = field(default_factory=list)
    other: Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing more to take."""
        return len(self.taken) >= self.calls and (self.other is not None or not self.joins)


class _Enough(BaseException):
    """Ends a forward pass; no model catches it."""


def run_to_taps(model: nn.Module, inputs: Any, taps: Sequence[Tap], what: str) -> None:
    """Run the model, in the mode that it is in, until every tap is done (or to its end); all hooks are gone then.

    Parameters
    ----------
    model : Module
        The model.
    inputs : object
        One batch's inputs, on the model's device.
    taps : sequence of Tap
        Filled.
    what : str
        What the inputs are, for messages.
    """
    with ExitStack() as stack:
        for tap in taps:
            _install(stack, tap, taps)
        with suppress(_Enough):
            run_batch(model, inputs, what)


def _install(stack: ExitStack, tap: Tap, taps: Sequence[Tap]) -> None:
    def finish() -> None:
        if all(t.done for t in taps):
            raise _Enough

    def take(*tensors: Any) -> None:
        if len(tap.taken) >= tap.calls or not all(isinstance(t, Tensor) for t in tensors):
            return
        tap.taken.append(tensors)
        finish()
        tap.taken[-1] = tuple(t.detach().clone() for t in tensors)  # the pass continues, and might change them in place

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
        take(first_tensor(args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
        take(first_tensor(args, kwargs), output)

    def joined(other: Tensor) -> None:
        mode.term = None
        tap.other = other
        finish()
        tap.other = other.detach().clone()

    def summed(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        mode.term = output

    for module in tap.modules:
        if tap.outputs:
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    if tap.joins:
        mode = stack.enter_context(OtherTerm(joined))
        last = tap.modules[0] if tap.norm is None else tap.norm
        stack.callback(last.register_forward_hook(summed).remove)
