"""Save and restore the state of a model that a forward pass can change."""

from __future__ import annotations

import operator
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.inventory.kinds import hooked_names, is_lazy
from rankfold.inventory.reach import attributes, base_container, is_record, reach, slots


def holds_graph(model: nn.Module) -> bool:
    """Whether a model stores a tensor with its graph, as state of the last batch."""
    return any(isinstance(value, Tensor) and value.grad_fn is not None for value in reach(model))


class KeptState:
    """A model's present state, to be restored after forward passes.

    The state consists of the attributes, buffers, parameters and children of every module, by identity; the contents of
    lists, dicts, sets, deques and objects of the user's classes at any depth; the values of tensors and arrays that are
    not parameters; and the states of random generators. It is restored in place and only where it changed, because
    writing to a tensor would invalidate a backward pass that the user has yet to run. Among parameters, only the
    weights of embeddings that renormalize the rows they look up are saved by value.

    Parameters
    ----------
    model : Module
        The model.
    without : iterable of Module
        Modules whose state may change.
    buffers : bool
        Whether to save buffers and the weights of embeddings, which training changes.

    Attributes
    ----------
    parameters : list of Tensor
        All parameters, including those of modules in lists and objects, and other leaves that require gradients.
    """

    def __init__(self, model: nn.Module, *, without: Iterable[nn.Module] = (), buffers: bool = True) -> None:
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor, int]] = []
        self._leaves: list[Tensor] = []
        self.parameters: list[Tensor] = [p for m in without for p in m._parameters.values() if p is not None]
        self._others: list[Callable[[], object]] = []
        computed: set[int] = set()
        for value in reach(model, without=without):
            if isinstance(value, nn.Module):
                self.parameters += (p for p in value._parameters.values() if p is not None)
                if value._forward_pre_hooks:
                    computed.update(id(vars(value).get(name)) for name in hooked_names(value))
                if not buffers:
                    computed.update(map(id, value._buffers.values()))
                elif isinstance(value, nn.Embedding | nn.EmbeddingBag) and value.max_norm is not None:
                    self._keep_tensor(value.weight)
                tables = (vars(value), value._parameters, value._modules, *([value._buffers] if buffers else ()))
                self._tables += ((table, dict(table)) for table in tables if type(table) is dict)  # not TorchScript's
            elif isinstance(value, Tensor):
                if id(value) not in computed:  # computed tensors are replaced at each call, not written to
                    self._keep_tensor(value)
                if value.requires_grad and value.is_leaf:
                    self.parameters.append(value)
            elif type(value) is not tuple:
                self._keep_other(value)

    def _keep_tensor(self, tensor: Tensor) -> None:
        # Inference tensors cannot be written to outside of inference mode.
        if not is_lazy(tensor) and not tensor.is_inference() and not tensor.is_meta:
            self._tensors.append((tensor, tensor.detach().clone(), tensor._version))
            if tensor.grad_fn is None:
                self._leaves.append(tensor)

    def _keep_other(self, value: Any) -> None:
        base = base_container(value)
        if base in (dict, OrderedDict):
            self._tables.append((value, base(value) if type(value) is base else OrderedDict(base.items(value))))
        elif base is not None:
            self._others.append(_restorer(value, base))
        elif isinstance(value, np.ndarray):
            if not value.dtype.hasobject:
                self._others.append(_array_restorer(value))
            return
        elif (rewind := _rewinder(value)) is not None:
            self._others.append(rewind)
            return
        if type(value) in (dict, OrderedDict, list, tuple, set, deque) or not (base or is_record(value)):
            return
        own = attributes(value)
        self._tables.append((own, dict(own)))
        if not hasattr(value, "__dict__") or slots(value):
            self._others.append(_slot_restorer(value))

    def reset(self) -> bool:
        """Restore everything that changed; return whether an attribute, a container or a tensor did."""
        changed = False
        for table, kept in self._tables:
            same = len(table) == len(kept) and all(map(operator.is_, table.values(), kept.values()))
            if not same or not all(map(operator.is_, table, kept)):
                _refill(table, kept)
                changed = True
        with torch.inference_mode(False), torch.no_grad():
            for tensor, kept in _changed(self._tensors):
                tensor.copy_(kept)
                changed = True
            for tensor in self._leaves:
                if tensor.grad_fn is not None:  # written to in place with a tensor that has a graph
                    tensor.detach_()
        for restore in self._others:
            changed |= restore() is True
        return changed


def _refill(table: dict[str, Any], kept: dict[str, Any]) -> None:
    base: Any = OrderedDict if isinstance(table, OrderedDict) else dict
    if list(base.keys(table)) != list(kept):  # the order of buffers and modules is visible to the user
        base.clear(table)
    for key, value in kept.items():  # `update` would call a subclass's own methods
        base.__setitem__(table, key, value)


def _changed(held: Sequence[tuple[Tensor, Tensor, int]]) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors whose values changed, with the saved values."""
    changed: list[tuple[Tensor, Tensor]] = []
    by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for tensor, kept, version in held:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:  # not all of them can be compared
            changed += [(tensor, kept)] if tensor._version != version else []
        elif tensor.shape != kept.shape or tensor.dtype != kept.dtype or tensor.device != kept.device:
            tensor.data = kept.clone()
        elif tensor.device.type != "cpu":
            by_device[tensor.device].append((tensor, kept))
        # Versions are not reliable: batch norm updates its statistics without incrementing theirs.
        elif not torch.equal(tensor, kept):
            changed.append((tensor, kept))
    for pairs in by_device.values():  # one transfer per accelerator instead of one per tensor
        flags = torch.stack([(tensor != kept).any() for tensor, kept in pairs]).tolist()
        changed += [pair for pair, flag in zip(pairs, flags, strict=True) if flag]
    return changed


def _restorer(value: Any, base: type[Any]) -> Callable[[], object]:
    kept = list(base.__iter__(value))

    def restore() -> bool:
        if base.__len__(value) == len(kept) and all(map(operator.is_, base.__iter__(value), kept)):
            return False
        base.clear(value)
        (base.update if base is set else base.extend)(value, kept)
        return True

    return restore


def _slot_restorer(value: Any) -> Callable[[], object]:
    kept = slots(value)

    def restore() -> None:
        for name in slots(value).keys() - kept.keys():
            object.__delattr__(value, name)
        for name, content in kept.items():
            object.__setattr__(value, name, content)

    return restore


def _array_restorer(value: np.ndarray) -> Callable[[], object]:
    kept = value.copy()
    return lambda: None if not value.flags.writeable else np.copyto(value, kept)


def _rewinder(value: Any) -> Callable[[], object] | None:
    """Return a function that restores the state of a random generator; None for anything else."""
    if isinstance(value, torch.Generator | np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None
