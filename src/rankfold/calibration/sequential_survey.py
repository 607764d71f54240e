"""What is to be known before the walk: how the original uses its layers, and which of them are fitted together."""

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
    """Give every attention that is to be factored separate projections, in both networks: hooks see those.

    Parameters
    ----------
    original : Module
        Left untouched: where something is to be changed, it is copied.
    work : Module
        Its copy, changed in place.
    layers : mapping
        The layers by name.
    plan : Plan
        What is factored.

    Returns
    -------
    original, work : Module
        The two networks to continue with.
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
    """Run a model on the first batch: how it uses each layer that is called, and which weights have other readers."""
    entries = scan(model).entries
    usage = Usage(entries)
    modules = {name: found for name, layer in layers.items() if (found := layer_modules(model, layer))}
    with undisturbed(model) as reset:
        first = split_batch(next(iterate(batches, "calibration")))[0]
        run = partial(run_batch, model, to_device(first, model_device(model)), "calibration batch 1")
        uses = observe(model, modules, run)
        reset()
        with usage.watching():
            run()
    return uses, {entries[i].info.name for i in usage.used_elsewhere}


def joint_steps(names: Sequence[str], uses: Mapping[str, Use]) -> list[list[str]]:
    """Join layers that follow each other on the same input: one pass serves them all."""
    steps: list[list[str]] = []
    for name in names:
        use = uses[name]
        if steps and use.beside == steps[-1][-1] and use.calls == 1 and not use.joins:
            steps[-1].append(name)
        else:
            steps.append([name])
    return steps
