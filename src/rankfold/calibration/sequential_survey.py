"""Preparation of the sequential fit: how the original uses its layers, and which of them are fitted together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from rankfold._tensors import model_device, to_device
from rankfold.batches import iterate, split_batch
from rankfold.calibration.flow import Use, observe
from rankfold.calibration.sequential_sums import layer_modules
from rankfold.inventory import find_module, run_batch, undisturbed
from rankfold.inventory.kinds import is_attention
from rankfold.inventory.static import scan
from rankfold.inventory.watch import Usage
from rankfold.records import LayerInfo, Plan
from rankfold.surgery import copy_model
from rankfold.surgery.attention import separate_attention_


def separate_attentions(
    original: nn.Module, work: nn.Module, layers: Mapping[str, LayerInfo], plan: Plan
) -> tuple[nn.Module, nn.Module]:
    """Give every attention that will be factored separate projections, which hooks can see, in both networks.

    `original` is copied if it has such an attention; `work`, its copy, is changed in place. Returns the two networks
    to continue with.
    """
    paths: list[str] = []
    for name in plan.factored:
        for path in (name, *layers[name].aliases, *layers[name].ties):
            parent = path.rpartition(".")[0]
            if parent not in paths and is_attention(find_module(work, parent)):
                paths.append(parent)
    if paths:
        original = copy_model(original)
    for path in paths:
        twins = [separate_attention_(model, path) for model in (original, work)]
        if path == "":
            original, work = twins
    return original, work


def observe_layers(
    model: nn.Module, layers: Mapping[str, LayerInfo], batches: Iterable[Any]
) -> tuple[dict[str, Use], set[str]]:
    """Return how a model uses each layer on the first batch, and which layers' weights are also used elsewhere."""
    entries, _ = scan(model)
    usage = Usage(entries)
    modules = {name: layer_modules(model, layer) for name, layer in layers.items()}
    with undisturbed(model) as reset:
        first = split_batch(next(iterate(batches, "calibration")))[0]
        run = partial(run_batch, model, to_device(first, model_device(model)), "calibration batch 1")
        uses = observe(model, modules, run)
        reset()
        with usage.watching():
            run()
    return uses, {entries[i].info.name for i in usage.used_elsewhere}


def joint_steps(names: Sequence[str], uses: Mapping[str, Use]) -> list[list[str]]:
    """Group consecutive layers that have the same input: one pass serves all of them."""
    steps: list[list[str]] = []
    for name in names:
        use = uses[name]
        if steps and use.sibling == steps[-1][-1] and use.calls == 1 and not use.joins:
            steps[-1].append(name)
        else:
            steps.append([name])
    return steps
