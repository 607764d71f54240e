"""Gauge the factors of a compressed model: the same outputs with fewer parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from rankfold import methods
from rankfold._turns import in_grad_turn
from rankfold.cost import gauged_cost
from rankfold.inventory import copy_model
from rankfold.records import Choice
from rankfold.surgery.apply import Swap, factors_key, plan_of, remember_plan, swap_, tied_twin
from rankfold.surgery.factored import Factored, build, stage_factors
from rankfold.surgery.stock import memory_format


@in_grad_turn
def gauge(model: nn.Module) -> nn.Module:
    """Return a copy of a compressed model without the redundant parameters of its factors.

    A product of factors of rank r has r^2 redundant parameters at every bond. In the copy, an r x r block of one factor
    is the identity, which is neither stored nor multiplied. Outputs are equal up to rounding, also after fine-tuning.
    Layers whose bonds cannot be gauged (`cp`, `filterwise_cp`, `ttm`) or that would not become smaller are unchanged.
    An optimizer holds the parameters of the given model: create a new one for the copy.

    Parameters
    ----------
    model : Module
        A model that `apply`, `compress` or `load` returned, fine-tuned or not; left unchanged.

    Raises
    ------
    RankfoldError
        If the model has no factored layers.
    GaugeError
        If a layer's gauged factors, rounded to its data type, would not give the same results.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> small = rf.apply(net, rf.plan(net, torch.randn(1, 32), budget="params<=50%"))
    >>> gauged = rf.gauge(small)
    >>> sum(p.numel() for p in gauged.parameters()) < sum(p.numel() for p in small.parameters())
    True
    >>> x = torch.randn(4, 32)
    >>> torch.allclose(gauged(x), small(x), atol=1e-5)
    True
    """
    plan = plan_of(model)
    new = copy_model(model)
    names: dict[Factored, list[str]] = {}
    for name, module in new.named_modules(remove_duplicate=False):
        if isinstance(module, Factored):
            names.setdefault(module, []).append(name)
    first: dict[tuple[int, ...], tuple[Factored, Factored]] = {}
    swaps: list[Swap] = []
    for module, paths in names.items():
        key = factors_key(module)
        if key in first:  # tied to a layer that is gauged already
            source, gauged_source = first[key]
            one_bias = module.bias is not None and module.bias is source.bias
            twin = tied_twin(gauged_source, module.bias, one_bias=one_bias)
        else:
            twin = _gauged(module)
            if twin is None:
                continue
            first[key] = module, twin
        swaps.append((tuple(paths), twin))
    # After the loop: a module that has replaced another holds its hooks, which `tied_twin` would copy.
    new = swap_(new, swaps, original=model)
    gauged = {path for paths, _ in swaps for path in paths}
    choices = {n: replace(c, gauge=c.gauge or n in gauged) for n, c in plan.layers.items()}
    return remember_plan(new, replace(plan, layers=choices))


def _gauged(module: Factored) -> Factored | None:
    """Return the gauged twin of a layer; None if it is gauged already, cannot be, or would not be smaller."""
    if any(isinstance(stage, Factored) for stage in module):  # compressed again: its own stages may be gauged
        return None
    bias = module.bias
    info = replace(module.info, bias=bias is not None)  # folding a batch norm may have given it one
    if module.choice.gauge or not gauged_cost(methods.chosen_blueprint(info, module.choice), info)[1]:
        return None
    choice: Choice = replace(module.choice, gauge=True)
    twin = build(
        methods.chosen_blueprint(info, choice),
        info,
        choice,
        dtype=module.dtype,
        device=module.device,
        factors=[factor.detach() for factor in stage_factors(module)],
        bias=None if bias is None else bias.detach(),
    )
    formats = {memory_format(p) for p in module.parameters()} - {torch.preserve_format}
    return twin.to(memory_format=formats.pop()) if formats else twin
