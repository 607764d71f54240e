"""The sums that a layer is fitted to: both networks run over the data, up to that layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._hashing import content_hash
from rankfold._progress import track
from rankfold._tensors import model_device, to_device
from rankfold.batches import iterate, leading, split_batch
from rankfold.calibration.flow import OtherTerm, Use, first_tensor
from rankfold.calibration.pairs import PairSums
from rankfold.calibration.replay import faithful
from rankfold.calibration.resuming import Resuming
from rankfold.calibration.sequential_config import Sequential
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import Padding, find_module, run_batch, undisturbed
from rankfold.inventory.kinds import is_attention
from rankfold.records import LayerInfo
from rankfold.records.narrowing import Removed

CHECKED = 2
"""Samples on which every resumed pass is compared with a whole one."""
_NO_RESUMING = (
    "the network's activations before {} cannot be kept (they change from run to run or in place, or are "
    "differentiated). Each pass starts at the inputs, which takes longer."
)


def collect_pairs(
    original: nn.Module,
    small: nn.Module,
    layers: Mapping[str, LayerInfo],
    uses: Mapping[str, Use],
    batches: Iterable[Any],
    config: Sequential,
    removed: Mapping[str, Removed] | None = None,
    *,
    resuming: Resuming | None = None,
    unsettled: Iterable[LayerInfo] = (),
) -> dict[str, PairSums | None]:
    """Run the original and the compressed network on every batch, up to some layers.

    Parameters
    ----------
    original, small : Module
        The two networks.
    layers : mapping
        The layers of the compressed network by name, before they are factored; several layers are called one after the
        other on the same input.
    uses : mapping
        How the original uses the layers.
    batches : iterable
        The data.
    config : Sequential
        Options.
    removed : mapping, optional
        The channels that layers have in the original only (`Narrowing.removed`); what the others lack is summed.
    resuming : Resuming, optional
        Where the passes for the preceding layers ended.
    unsettled : iterable of LayerInfo
        The layers that later calls with the same `resuming` are for; they may change until then.

    Returns
    -------
    dict
        The sums by layer name; None for a layer whose calls in the two networks do not correspond.
    """
    sums: dict[str, PairSums | None] = {
        name: PairSums(layer, max_patch=config.max_patch, max_positions=config.max_positions)
        for name, layer in layers.items()
    }

    later = list(unsettled)

    def run(model: nn.Module, inputs: Any, what: str, *resume: Any) -> dict[str, _Tap]:
        taps = {}
        for name, layer in layers.items():
            use, total = uses[name], sums[name]
            exact = total is not None and total.exact
            taps[name] = _Tap(
                modules=layer_modules(model, layer),
                outputs=exact,
                calls=use.calls,
                joins=use.joins and exact and config.shortcuts,
                norm=None if use.norm is None else model.get_submodule(use.norm),
            )
        with ExitStack() as hooks, suppress(_Enough):
            end: Callable[[], None] = _nothing
            if resuming is not None and resume:
                # The layers here keep their weights in the original: their outputs are computed once.
                changing = later if model is original else [*layers.values(), *later]
                modules = [module for layer in changing for module in layer_modules(model, layer)]
                end = hooks.enter_context(resuming.resumed(model, *resume, unsettled=modules))
            for tap in taps.values():
                _install(hooks, tap, list(taps.values()), end)
            example = getattr(batches, "example", None)
            run_batch(model, to_device(inputs, model_device(model)), what, example=example)
        return taps

    with undisturbed(original) as reset, undisturbed(small) as reset_small:
        description = f"layer {next(iter(layers))}"
        for number, batch in enumerate(
            track(iterate(batches, "calibration"), description, length_hint(batches) or None), 1
        ):
            inputs = split_batch(batch)[0]
            padding = Padding.of(original, inputs)
            what = f"calibration batch {number}"
            if number == 1 and resuming is not None:
                _check(resuming, partial(run, original), reset, inputs, "original", description)
                _check(resuming, partial(run, small), reset_small, inputs, "small", description)
            content = None if resuming is None else content_hash(inputs)
            wanted = run(original, inputs, what, ("original", number), content)
            actual = run(small, inputs, what, ("small", number), content)
            for name, total in sums.items():
                gone = (removed or {}).get(name, {})
                if total is not None and not _add(total, wanted[name], actual[name], padding, gone):
                    sums[name] = None
            reset()
            reset_small()
    return sums


def _check(
    resuming: Resuming,
    run: Callable[..., dict[str, _Tap]],
    reset: Callable[[], object],
    inputs: Any,
    network: str,
    layer: str,
) -> None:
    """Run a network on a few samples from the inputs and from the last point; if the two differ, resume no more."""
    few = leading(inputs, CHECKED)
    try:
        whole = run(few, layer)
        reset()
        resumed = run(few, layer, (f"{network}, check", 0), content_hash(few))
        same = faithful(_recorded(whole), _recorded(resumed))
    except ModelError:  # for example, because it differentiates kept activations, or needs whole batches
        same = False
    reset()
    if not same and resuming.stop():
        warnings.warn(_NO_RESUMING.format(layer), RankfoldWarning, stacklevel=2)


def _recorded(taps: Mapping[str, _Tap]) -> list[Tensor]:
    """Return all tensors that taps have recorded."""
    return [t for tap in taps.values() for t in (*chain.from_iterable(tap.taken), tap.other) if t is not None]


def layer_modules(model: nn.Module, layer: LayerInfo) -> list[nn.Module]:
    """Return the modules that compute with a layer's weight; none if hooks cannot see one of them."""
    modules: dict[int, nn.Module] = {}
    for path in (layer.name, *layer.ties):
        module = find_module(model, path)
        if module is None or is_attention(find_module(model, path.rpartition(".")[0])):
            return []
        modules[id(module)] = module
    return list(modules.values())


def _add(sums: PairSums, original: _Tap, small: _Tap, padding: Padding | None, removed: Removed) -> bool:
    """Add what the layer's calls lacked on one batch; return False if the calls do not correspond."""
    if len(original.taken) != len(small.taken):
        return False
    gone = removed.get("outputs" if sums.exact else "inputs", frozenset())
    for wanted, (given, *output) in zip(original.taken, small.taken, strict=True):
        target = _remaining(wanted[-1], sums.layer, gone)
        if original.other is not None and small.other is not None:
            target = target + _lost(_remaining(original.other, sums.layer, gone), small.other, small.norm)
        if not sums.add(target, output[0] if output else given, given, padding):
            return False
    return True


def _remaining(tensor: Tensor, layer: LayerInfo, gone: frozenset[int]) -> Tensor:
    """Return a layer's input or output in the original without some channels."""
    if not gone:
        return tensor
    dim = tensor.ndim - 1 - len(layer.kernel)
    kept = [i for i in range(tensor.shape[dim]) if i not in gone]
    return tensor.index_select(dim, torch.tensor(kept, device=tensor.device))


def _lost(original: Tensor, small: Tensor, norm: Any) -> Tensor:
    """Return the error of the other term of a sum, divided by the gain of the BatchNorm before the sum."""
    lost = original - small.to(original.device)
    if norm is None:
        return lost
    gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    # A channel that the BatchNorm nearly shuts could not carry it.
    open_ = gain.abs() > 0.05 * gain.abs().mean()
    inverse = torch.where(open_, 1 / gain, torch.zeros_like(gain))
    return lost * inverse.reshape(-1, *(1,) * (lost.ndim - 2)).to(lost)


@dataclass(slots=True, kw_only=True, eq=False)
class _Tap:
    """What to record at one layer during a forward pass, and what has been recorded: a tap on its inputs and outputs.

    `outputs`: the output of each call, together with its input. `joins`: also the tensor that the output (of `norm`, if
    there is one) is added to.
    """

    modules: Sequence[nn.Module]
    outputs: bool
    calls: int
    joins: bool
    norm: nn.Module | None
    taken: list[tuple[Tensor, ...]] = field(default_factory=list)
    other: Tensor | None = None

    @property
    def done(self) -> bool:
        return len(self.taken) >= self.calls and (self.other is not None or not self.joins)


def _nothing() -> None:
    """Do nothing: the end of a pass that is not recorded."""


class _Enough(BaseException):
    """Ends a forward pass; no model catches it."""


def _install(stack: ExitStack, tap: _Tap, taps: Sequence[_Tap], end: Callable[[], None]) -> None:
    """Register the hooks of one tap, which call `end` and end the forward pass once all taps are done."""

    def finish() -> None:
        if all(t.done for t in taps):
            end()
            raise _Enough

    def take(*tensors: Any) -> None:
        if len(tap.taken) >= tap.calls or not all(isinstance(t, Tensor) for t in tensors):
            return
        tap.taken.append(tensors)
        finish()
        tap.taken[-1] = tuple(t.detach().clone() for t in tensors)  # the rest of the pass might change them in place

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
