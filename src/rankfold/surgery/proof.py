"""Prove with a run that a compressed model runs its factored layers and nothing in their place."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._printable import few
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import KeptState, call_example, layer_bias, layer_weight, undisturbed
from rankfold.inventory.kinds import STOCK, original_class
from rankfold.inventory.reach import reach
from rankfold.inventory.sharing import storage_pointer
from rankfold.inventory.static import scan
from rankfold.inventory.watch import MemoryWatch, Usage
from rankfold.records import LayerInfo
from rankfold.surgery.apply import factored_layers
from rankfold.surgery.exchange import listed
from rankfold.surgery.references import HeldTensor
from rankfold.surgery.stock import uninitialized


class Proof:
    """Proof for compressed models of one original on one example input.

    In the run, each factored layer must be called as often as the layer that it replaces, and no operation may read
    memory of the original's parameters and buffers, or a replaced weight that the compressed model still holds. This
    detects any code that still runs the original: functions, closures, globals, references that no search finds. A
    `RankfoldWarning` reports code that only writes to the original's attributes, such as a hook that counts calls.

    During the run, a factored layer returns the output of the layer that it replaces. The model then takes the same
    decisions as the original (which expert, how many steps), and calls can be compared exactly.

    Reads are allowed of memory that the compressed model shares with the original, because of a ``__deepcopy__`` of its
    own or because it was changed in place, and of replaced weights that the original also uses outside of the layer
    (the inventory notes that they stay dense there).

    Parameters
    ----------
    model : nn.Module
        The original, which runs once. Create the proof before the model is changed in place.
    names : iterable of str
        The layers that will be replaced.
    example_input : object
        As for `call_example`.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], example_input: Any) -> None:
        self._example = example_input
        self._original = model
        entries, _ = scan(model)
        usage = Usage(entries)
        with undisturbed(model), usage.watching():
            call_example(model, example_input)
        counts = Counter(usage.sequence)
        wanted = set(names)
        self._calls: dict[str, int] = {}
        self._originals: dict[str, tuple[LayerInfo, Tensor, Tensor | None]] = {}
        self._views: list[str] = []
        self._subclasses: list[str] = []
        outside: set[int] = set()
        for i, entry in enumerate(entries):
            info = entry.info
            if i in usage.used_elsewhere:
                pointers = {storage_pointer(tensor) for member in entry.members for tensor in member.stored}
                outside |= pointers
                if info.name in wanted and _held_view(model, pointers):
                    self._views.append(info.name)
            if info.name in wanted:
                self._calls[info.name] = counts[i]
                if original_class(entry.members[0].module) not in (*STOCK, nn.MultiheadAttention):
                    self._subclasses.append(info.name)
                for path in info.paths:
                    self._originals[path] = (info, layer_weight(model, path), layer_bias(model, path))
        self._memory = [(name, tensor) for name, tensor in _tensors(model) if storage_pointer(tensor) not in outside]

    def check(self, small: nn.Module, suspects: Sequence[str] = ()) -> None:
        """Raise `ModelError` unless a compressed model, which is left unchanged, runs its factored layers.

        `suspects` are references that could not be changed, the likely reason. Layers that are not factored must have
        the original's weights.
        """
        own = {storage_pointer(tensor) for _, tensor in _tensors(small)}
        read: dict[str, None] = {}
        memory = [(tensor, f"{name!r} of the original model") for name, tensor in self._memory]
        memory += [(held.tensor, f"a weight held by {held}") for held in suspects if isinstance(held, HeldTensor)]
        watch = MemoryWatch([(t, name) for t, name in memory if storage_pointer(t) not in own], read.setdefault)
        counts: Counter[str] = Counter()
        changed: list[bool] = []
        fused = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            if small is not self._original:
                state = KeptState(self._original)
                stack.callback(lambda: changed.append(state.reset()))
            for path, module in factored_layers(small).items():
                if path in self._originals:
                    hook = _answer(*self._originals[path], counts, watch)
                    handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
                    stack.callback(handle.remove)
            stack.enter_context(undisturbed(small))
            torch.backends.mha.set_fastpath_enabled(fused)  # as the user runs it; undisturbed() restores it
            stack.enter_context(watch)
            self._run(small)
        problems = [
            f"layer {name!r} ran {counts[name]} time(s), its original {calls} time(s)"
            for name, calls in self._calls.items()
            if counts[name] != calls
        ]
        problems += [f"{name} is read" for name in read]
        problems += [
            f"the weight of layer {name!r} is read outside of the layer, and the model holds a tensor that shares its "
            "memory (a view, .data, .detach()), which an artifact would not hold"
            for name in self._views
        ]
        if problems:
            raise ModelError(_message(problems, suspects))
        if any(changed):
            warnings.warn(
                "a hook or function of the model refers to the original: a run of the copy changes the original's "
                "attributes or buffers. If the model reads what it writes there, the copy computes something else. "
                "Write it as a method of the model's class.",
                RankfoldWarning,
                stacklevel=2,
            )

    def _run(self, small: nn.Module) -> None:
        try:
            call_example(small, self._example)
        except ModelError as error:
            raised = error.__cause__ or error
            which = "compressed model" if small is self._original else "copy of the model that is compressed"
            own = f" Layers of classes other than torch's: {few(self._subclasses)}." if self._subclasses else ""
            raise ModelError(
                f"the {which} cannot run on the example input, though the original can. It raised "
                f"{type(raised).__name__}: {raised}\nEither its code uses an attribute, a method or a width of a layer "
                "that the factored or narrowed layer does not have: exclude that layer. Or a hook or another function "
                f"refers to the original model: write it as a method of the model's class.{own}"
            ) from error


def _message(problems: list[str], suspects: Sequence[str]) -> str:
    reasons = (
        f"These hold the original layers or their weights and cannot be changed:\n{listed(list(suspects))}"
        if suspects
        else "The model reaches its layers other than through its attributes, such as by a function that was set on an "
        "instance, a global variable, a hook or a cache."
    )
    return (
        "the compressed model does not run its factored layers as it should. On the example input:\n"
        f"{listed(problems)}\n{reasons}\nA copy of a model shares functions with the original, and they keep calling "
        "the original layers. Call the layers as attributes of the model in a method of its class; remove a `forward` "
        "that was set on an instance (`del model.forward`) and set it again on the result."
    )


def _held_view(model: nn.Module, pointers: set[int]) -> bool:
    """Whether a model holds a tensor that shares a weight's memory and is neither a parameter nor a buffer."""
    buffers = {id(buffer) for buffer in model.buffers()}
    tensors = (value for value in reach(model) if isinstance(value, Tensor) and id(value) not in buffers)
    return any(storage_pointer(tensor) in pointers for tensor in tensors)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _answer(
    info: LayerInfo, weight: Tensor, bias: Tensor | None, counts: Counter[str], watch: MemoryWatch
) -> Callable[..., Tensor]:
    """Return a forward hook that counts calls and returns the output of the original layer, without its hooks."""
    bare = uninitialized(info, bias=bias is not None, device="meta")
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:  # noqa: ARG001
        counts[info.name] += 1
        with watch.paused():
            return torch.func.functional_call(bare, tensors, args, kwargs)

    return hook
