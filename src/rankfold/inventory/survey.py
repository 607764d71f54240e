"""`inspect`: run a model once on an example input and list its layers."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._turns import in_turn
from rankfold.batches import batch_size
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory.copying import copy_model
from rankfold.inventory.kinds import LAZY, is_lazy
from rankfold.inventory.modules import Running, module_costs
from rankfold.inventory.operations import OperationCounter
from rankfold.inventory.running import call_example, describe, evaluating, undisturbed
from rankfold.inventory.select import Selector, exclusions
from rankfold.inventory.static import Entry, check_model, scan, walk
from rankfold.inventory.watch import Usage
from rankfold.records import Inventory, LayerInfo
from rankfold.records.dense import dense_cost

_KEPT = 2**28
"""Up to this size (bytes), parameters are copied to detect changes by a forward pass; above, versions are compared."""


@in_turn
def inspect(
    model: nn.Module,
    example_input: Any,
    *,
    include: Selector = None,
    exclude: Selector = None,
    keep_first_last: bool = False,
) -> Inventory:
    """List a model's layers: shapes, costs, and why a layer cannot be compressed.

    The model runs once on the example input in eval mode, without gradients, under hooks; it is not traced, and it is
    left unchanged. A model with lazy modules is copied first.

    Parameters
    ----------
    model : nn.Module
        Any model.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    include, exclude : str, type, list of these, or None
        Layers to consider, or to leave out: shell patterns of names, regular expressions after ``re:``, or module
        classes.
    keep_first_last : bool
        Whether to leave the first convolution executed (the first layer, if there is no convolution) and the last layer
        executed unchanged.

    Returns
    -------
    Inventory
        Its `summary` states the share of parameters and MACs that can be compressed.

    Raises
    ------
    ModelError
        If the model is wrapped, has no weights yet (meta device), or cannot run on the example input.
    NoMatchingLayer
        If a pattern or type matches no layer.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> inspect(net, torch.zeros(1, 8), exclude="2").summary()
    'compressible: 78% of parameters, 80% of MACs (1 of 2 layers)'
    """
    check_model(model)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device and has no values. Load the model's weights first.")
    lazy = {path for module, paths in walk(model) if _is_lazy(module) for path in paths}
    if lazy:
        # The first run materializes lazy modules, which must not happen to the user's model.
        model = copy_model(model)
        with evaluating(model, without=list(model.modules())):
            call_example(model, example_input)
    entries, others = scan(model)
    excluded = exclusions(entries, include, exclude)
    usage = Usage(entries)
    modules = list(walk(model))
    macs, uncounted = _run(model, example_input, usage, [module for module, _ in modules])
    kept = _first_and_last(entries, usage) if keep_first_last else {}
    layers = tuple(
        _finished(entry.info, usage, i, lazy, excluded.get(entry.info.name) or kept.get(i))
        for i, entry in enumerate(entries)
    )
    costs = {layer.name: dense_cost(layer) for layer in layers}
    listed = Inventory(
        layers=layers,
        others=others,
        costs=costs,
        example=describe(example_input),
        batch=batch_size(example_input),
        uncounted=uncounted,
        modules=module_costs(modules, entries, costs, macs),
    )
    return listed.within({""})


def _is_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, chain(module.parameters(recurse=False), module.buffers(recurse=False))))


def _run(
    model: nn.Module, example_input: Any, usage: Usage, modules: Iterable[nn.Module]
) -> tuple[Mapping[Hashable, int], tuple[str, ...]]:
    """Run the model once under hooks.

    Returns its multiply-accumulates by the innermost module that ran, and the operations that are not counted.
    """
    running = Running()
    with undisturbed(model), _complete(model), usage.watching(), running.watching(modules):
        try:
            with OperationCounter(running.innermost) as counter:
                call_example(model, example_input)
            return counter.places, tuple(sorted(counter.uncounted))
        except ModelError as error:
            # A second run without the counter shows whether the model or the counter failed.
            usage.clear()
            call_example(model, example_input)
            warnings.warn(
                "the operations of the model could not be counted, so its MACs are the sum over "
                f"its layers: {error.__cause__}",
                RankfoldWarning,
                stacklevel=4,
            )
            return {}, ("all operations outside the layers",)


@contextmanager
def _complete(model: nn.Module) -> Iterator[None]:
    """Raise `ModelError` if the pass inside the block creates or changes parameters; small ones are restored."""
    names = {name for name, _ in model.named_parameters()}
    normed = {m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm}
    plain = {n: p for n, p in model.named_parameters() if not is_lazy(p) and p.layout == torch.strided}
    watched = {n: p for n, p in plain.items() if p not in normed and type(p) is nn.Parameter and not p.is_inference()}
    small = sum(p.numel() * p.element_size() for p in watched.values()) <= _KEPT
    values = {n: p.detach().clone() for n, p in watched.items()} if small else {}
    versions = {n: p._version for n, p in watched.items()}
    yield
    late = [name for name, _ in model.named_parameters() if name not in names]
    if late:
        raise ModelError(
            f"the model creates {late[0]!r} in its first forward pass, so its layers are not known yet. Run the model "
            "once before compressing it."
        )
    changed = [n for n, p in watched.items() if (not _same(p, values[n]) if small else p._version != versions[n])]
    with torch.no_grad():
        for name in changed if small else ():
            if watched[name].shape == values[name].shape:
                watched[name].copy_(values[name])
            else:
                watched[name].data = values[name]
    if changed:
        raise ModelError(
            f"the model changes its parameter {changed[0]!r} in forward, even in evaluation mode, so its results "
            "change with every call. Update the parameter outside of forward, or only if self.training."
        )


def _same(tensor: Tensor, before: Tensor) -> bool:
    alike = tensor.shape == before.shape and tensor.dtype == before.dtype
    return alike and torch.allclose(tensor, before, rtol=0, atol=0, equal_nan=True)


def _first_and_last(entries: Sequence[Entry], usage: Usage) -> dict[int, str]:
    order = usage.sequence
    if not order:
        return {}
    first = next((i for i in order if entries[i].info.kind == "conv"), order[0])
    return {order[-1]: "kept: last layer", first: "kept: first layer"}


def _finished(info: LayerInfo, usage: Usage, entry: int, lazy: set[str], excluded: str | None) -> LayerInfo:
    """Return a layer with its calls, and the skip reasons and notes that follow from the run and the user's options."""
    calls = usage.calls(entry)
    elsewhere = entry in usage.used_elsewhere
    skip = info.skip
    notes = [info.note]
    if info.name in lazy:
        skip = skip or LAZY
    if entry in usage.with_output_size:
        skip = skip or "it is called with output_size, which factors do not support"
    if elsewhere and not calls:
        skip = skip or "its weight is used without calling the layer (fused or functional code)"
    elif elsewhere:
        notes.append("its weight is also used outside the layer, where it stays dense")
    elif any(0 in call.out_size for call in calls):
        skip = skip or "its output is empty on the example input, so its factors could not run"
    elif not calls:
        notes.append("not called on the example input; factored by its weight alone")
    skip = skip or excluded
    note = "; ".join(n for n in notes if n) or None
    return replace(info, calls=calls, skip=skip, note=note if skip is None else None)
