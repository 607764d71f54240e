"""What a layer's weight becomes: dense approximations, for judging candidates without building them into a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm

from rankfold import methods
from rankfold.factor.moments import Moments
from rankfold.inventory.kinds import hooked_names, weight_hook
from rankfold.records import Candidate, LayerInfo


def approximations(
    weight: Tensor, layer: LayerInfo, candidates: Sequence[Candidate], moments: Moments | None
) -> Iterator[Tensor]:
    """Yield what each candidate makes of a weight, in torch's layout; a method prepares the layer once.

    Parameters
    ----------
    weight : Tensor
        In torch's layout.
    layer : LayerInfo
        The layer.
    candidates : sequence of Candidate
        Of this layer. Gauged factors compute the same as others, so nothing is gauged here.
    moments : Moments or None
        Second moments of the layer's input; None approximates the weight instead of the output.
    """
    prepared: dict[str, methods.Prepared] = {}
    for candidate in candidates:
        method = methods.get(candidate.method, candidate.options)
        if candidate.method not in prepared:
            prepared[candidate.method] = methods.prepare(method, weight, layer, moments)
        factors = [f.to(weight).contiguous() for f in prepared[candidate.method].factorize(candidate.ranks)]
        yield methods.compose(method.blueprint(layer, candidate.ranks), layer, factors)


def _unparametrize_(module: nn.Module) -> None:
    """Take all parametrisations off a module.

    Not by torch's `remove_parametrizations`: it deletes the weight from the module's class, which a deep copy shares
    with the original.
    """
    with torch.no_grad():
        computed = {name: getattr(module, name).clone() for name in cast("nn.ModuleDict", module.parametrizations)}
    plain = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, tensor in computed.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def computes_weights(model: nn.Module) -> bool:
    """Return whether any weight is computed: by a parametrization, weight or spectral norm, or a pruning mask."""
    return any(parametrize.is_parametrized(module) or hooked_names(module) for module in model.modules())


def bake_weights_(model: nn.Module) -> nn.Module:
    """Replace weights that are computed (weight and spectral norm, pruning masks) by what they are in eval mode.

    The model, which is in eval mode then, is returned.
    """
    model.eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            _unparametrize_(module)
        for name in hooked_names(module):
            hook = weight_hook(module, name)
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, name)
            else:
                remove_weight_norm(module, name)
    return model
