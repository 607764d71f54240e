"""Both networks run over the data up to a layer: the sums to which the layer is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._progress import track
from rankfold._tensors import model_device, to_device
from rankfold.batches import iterate, split_batch
from rankfold.calibration.flow import Use
from rankfold.calibration.pairs import PairSums
from rankfold.calibration.sequential_config import Sequential
from rankfold.calibration.taps import Tap, run_to_taps
from rankfold.inventory import find_module, undisturbed
from rankfold.inventory.kinds import is_attention
from rankfold.records import LayerInfo

Sums = dict[str, PairSums | None]
"""By layer name; None for a layer whose calls in the two networks cannot be paired."""


def collect_pairs(
    original: nn.Module,
    small: nn.Module,
    layers: Mapping[str, LayerInfo],
    uses: Mapping[str, Use],
    batches: Iterable[Any],
    config: Sequential,
) -> Sums:
    """Run the original and the compressed network on every batch, up to some layers.

    Parameters
    ----------
    original, small : Module
        The two networks.
    layers : mapping
        The layers by name, called one after the other on the same input if there are several.
    uses : mapping
        How the original uses them.
    batches : iterable
        The data.
    config : Sequential
        Options.
    """
    sums: Sums = {
        name: PairSums(layer, max_patch=config.max_patch, max_positions=config.max_positions)
        for name, layer in layers.items()
    }
    first = next(iter(layers))
    with undisturbed(original) as reset, undisturbed(small) as reset_small:
        items = track(iterate(batches, "calibration"), f"layer {first}", length_hint(batches) or None)
        for number, batch in enumerate(items, 1):
            wanted, found = (
                _run(model, layers, uses, sums, batch, config, f"calibration batch {number}")
                for model in (original, small)
            )
            for name in layers:
                total = sums[name]
                if total is not None and not _add(total, wanted[name], found[name]):
                    sums[name] = None
            reset()
            reset_small()
    return sums


def layer_modules(model: nn.Module, layer: LayerInfo) -> list[nn.Module]:
    """Return the modules that compute with a layer's weight; none if they cannot be seen."""
    found: dict[int, nn.Module] = {}
    for path in (layer.name, *layer.ties):
        module = find_module(model, path)
        if module is None or is_attention(find_module(model, path.rpartition(".")[0])):
            return []
        found[id(module)] = module
    return list(found.values())


def _run(
    model: nn.Module,
    layers: Mapping[str, LayerInfo],
    uses: Mapping[str, Use],
    sums: Sums,
    batch: Any,
    config: Sequential,
    what: str,
) -> dict[str, Tap]:
    """Run one network on one batch and return what was taken at each layer."""
    taps = {}
    for name, layer in layers.items():
        use, total = uses[name], sums[name]
        exact = total is not None and total.exact
        taps[name] = Tap(
            modules=layer_modules(model, layer),
            outputs=exact,
            calls=use.calls,
            joins=use.joins and exact and config.shortcuts,
            norm=None if use.norm is None else model.get_submodule(use.norm),
        )
    inputs = to_device(split_batch(batch)[0], model_device(model))
    run_to_taps(model, inputs, list(taps.values()), what)
    return taps


def _add(sums: PairSums, original: Tap, small: Tap) -> bool:
    """Add what the layer's calls lacked on one batch; return False if they do not correspond."""
    if len(original.taken) != len(small.taken):
        return False
    for wanted, (given, *found) in zip(original.taken, small.taken, strict=True):
        target = wanted[-1]
        if original.other is not None and small.other is not None:
            target = target + _lost(original, small.other)
        if not sums.add(target, found[0] if found else given, given):
            return False
    return True


def _lost(original: Tap, other: Tensor) -> Tensor:
    """Return what the other term of a sum has lost, as the layer's output is to make up for it."""
    assert original.other is not None
    lost = original.other - other.to(original.other.device)
    norm: Any = original.norm
    if norm is None:
        return lost
    gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    # A channel that the BatchNorm nearly shuts could not carry it.
    open_ = gain.abs() > 0.05 * gain.abs().mean()
    inverse = torch.where(open_, 1 / gain, torch.zeros_like(gain))
    return lost * inverse.reshape(-1, *(1,) * (lost.ndim - 2)).to(lost)
