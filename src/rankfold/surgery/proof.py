"""Proof by a run that the layers of a compressed model run, and that nothing else runs in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError
from rankfold.inventory import call_example, layer_bias, layer_weight, undisturbed
from rankfold.inventory.reach import reach
from rankfold.inventory.sharing import storage_pointer
from rankfold.inventory.static import scan
from rankfold.inventory.watch import MemoryWatch, Usage
from rankfold.records import LayerInfo
from rankfold.surgery.apply import factored_layers
from rankfold.surgery.exchange import listed
from rankfold.surgery.references import HeldTensor
from rankfold.surgery.stock import uninitialised


class Proof:
    """Proves compressed models of one original on one example input.

    A compressed model is believed if, on the example, each of its factored layers is called as often as the layer that
    it replaces, and no operation reads memory of the original's parameters and buffers, or a replaced weight that the
    compressed model still holds. Whatever keeps the original
    running is detected that way: functions, closures, globals, references that a search misses.

    While it is proved, a factored layer answers with the output of the layer that it replaces. So the model decides
    what the original decides (which expert, how many steps), and calls can be compared exactly.

    Memory that the compressed model itself holds, because a model's own ``__deepcopy__`` shares it or because the
    model was changed in place, may be read. So may a replaced weight that the original also uses outside of its
    layer, which the inventory says (it stays full there).

    Parameters
    ----------
    model : nn.Module
        The original; it runs once. Build the proof before the model is changed in place.
    names : iterable of str
        The layers to replace.
    example_input : object
        As `call_example` takes it.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], example_input: Any) -> None:
        self._example = example_input
        entries, _ = scan(model)
        usage = Usage(entries)
        with undisturbed(model), usage.watching():
            call_example(model, example_input)
        counts = Counter(usage.sequence)
        wanted = set(names)
        self._calls: dict[str, int] = {}
        self._originals: dict[str, _Original] = {}
        self._views: list[str] = []
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
                for path in (info.name, *info.aliases, *info.ties):
                    self._originals[path] = _Original(info, layer_weight(model, path), layer_bias(model, path))
        self._memory = [(name, tensor) for name, tensor in _tensors(model) if storage_pointer(tensor) not in outside]

    def check(self, small: nn.Module, suspects: Sequence[str] = ()) -> None:
        """Raise `ModelError` unless a compressed model runs what was swapped.

        Parameters
        ----------
        small : nn.Module
            The compressed model; left as it was. Its layers that are not factored have the original's weights.
        suspects : sequence of str
            References that could not be changed: the likely reason.
        """
        own = {storage_pointer(tensor) for _, tensor in _tensors(small)}
        read: dict[str, None] = {}
        memory = [(tensor, f"{name!r} of the original model") for name, tensor in self._memory]
        memory += [(held.tensor, f"a weight held by {held}") for held in suspects if isinstance(held, HeldTensor)]
        watch = MemoryWatch([(t, name) for t, name in memory if storage_pointer(t) not in own], read.setdefault)
        counts: Counter[str] = Counter()
        fused = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            for path, module in factored_layers(small).items():
                if path in self._originals:
                    hook = _Answer(self._originals[path], counts, watch)
                    handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
                    stack.callback(handle.remove)
            stack.enter_context(undisturbed(small))
            torch.backends.mha.set_fastpath_enabled(fused)  # as the user will run it; undisturbed() puts it back
            stack.enter_context(watch)
            call_example(small, self._example)
        problems = [
            f"layer {name!r} runs {counts[name]} time(s), its original ran {calls} time(s)"
            for name, calls in self._calls.items()
            if counts[name] != calls
        ]
        problems += [f"{name} is read" for name in read]
        problems += [
            f"the weight of layer {name!r} is read outside of the layer, and the model holds a tensor that shares its "
            "memory (a view, .data, .detach()), which an artefact would not hold"
            for name in self._views
        ]
        if problems:
            raise ModelError(_message(problems, suspects))


def _message(problems: list[str], suspects: Sequence[str]) -> str:
    reasons = (
        f"These hold the original layers or their weights and cannot be changed:\n{listed(list(suspects))}"
        if suspects
        else "The model reaches its layers by another way than its attributes, such as a function that was set on an "
        "instance, a global variable, a hook or a cache."
    )
    return (
        "the compressed model does not run what was swapped; on the example input\n"
        f"{listed(problems)}\n{reasons}\nA copy of a model shares functions with the original, which keep the layers "
        "that they were made for. Call the layers as attributes of the model in a method of its class; take off a "
        "`forward` that was set on an instance (`del model.forward`) and set it on the result again."
    )


def _held_view(model: nn.Module, pointers: set[int]) -> bool:
    """Whether a model holds a tensor that shares memory with a weight, but is neither a parameter nor a buffer."""
    buffers = {id(buffer) for buffer in model.buffers()}
    tensors = (value for value in reach(model) if isinstance(value, Tensor) and id(value) not in buffers)
    return any(storage_pointer(tensor) in pointers for tensor in tensors)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@dataclass(frozen=True, slots=True, eq=False)
class _Original:
    """One original layer: its settings and tensors, without its hooks."""

    info: LayerInfo
    weight: Tensor
    bias: Tensor | None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tensors = {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}
        bare = uninitialised(self.info, bias=self.bias is not None, device="meta")
        return torch.func.functional_call(bare, tensors, args, dict(kwargs))


class _Answer:
    """A forward hook of a factored layer: counts the call and answers with the original layer's output."""

    def __init__(self, original: _Original, counts: Counter[str], watch: MemoryWatch) -> None:
        self._original = original
        self._counts = counts
        self._watch = watch

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:  # noqa: ARG002 - torch's signature
        self._counts[self._original.info.name] += 1
        with self._watch.paused():
            return self._original(args, kwargs)
