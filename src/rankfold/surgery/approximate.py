"""Dense approximations of weights, which evaluate candidates without building their modules."""

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
    """Yield the weight that each candidate of a layer composes to; a method prepares the layer once.

    Weights are in torch's layout. Gauged factors compute the same as plain ones, so nothing is gauged here. Without
    `moments`, the weight is approximated instead of the output.
    """
    prepared: dict[str, methods.Prepared] = {}
    for candidate in candidates:
        method = methods.get(candidate.method, candidate.options)
        if candidate.method not in prepared:
            prepared[candidate.method] = methods.prepare(method, weight, layer, moments)
        factors = [f.to(weight).contiguous() for f in prepared[candidate.method].factorize(candidate.ranks)]
        yield methods.compose(method.blueprint(layer, candidate.ranks), layer, factors)


def computes_weights(model: nn.Module) -> bool:
    """Whether any weight is computed by a parametrization, weight or spectral norm, or a pruning mask."""
    return any(parametrize.is_parametrized(module) or hooked_names(module) for module in model.modules())


def bake_weights_(model: nn.Module) -> nn.Module:
    """Replace computed weights (weight and spectral norm, pruning masks) by their values in eval mode.

    Returns the model, in eval mode.
    """
    model.eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            with torch.no_grad():
                computed = {n: getattr(module, n).clone() for n in cast("nn.ModuleDict", module.parametrizations)}
            # torch's `remove_parametrizations` would delete the weight from a class that copies of the module share.
            plain = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.__class__ = plain
            for name, tensor in computed.items():
                module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for name in hooked_names(module):
            hook = weight_hook(module, name)
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, name)
            else:
                remove_weight_norm(module, name)
    return model
