"""Gauge the factors of a compressed model: the same outputs with fewer parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from rankfold import methods
from rankfold._grad_mode import trainable
from rankfold._turns import in_turn
from rankfold.cost import gauged_cost
from rankfold.inventory import copy_model
from rankfold.records import Choice
from rankfold.surgery.apply import Swap, plan_of, remember_plan, swap_, tied_twin
from rankfold.surgery.factored import Factored, build, stage_factors
from rankfold.surgery.stock import memory_format


@in_turn
@trainable
def gauge(model: nn.Module) -> nn.Module:
    """Return a copy of a compressed model whose factors are gauged wherever that makes them smaller.

    A product of factors of rank r has r^2 redundant numbers; in the copy an r x r block of one factor at every bond is
    the identity, which is neither stored nor multiplied. The outputs are the same up to rounding, of fine-tuned factors
    too. Layers whose bonds cannot be gauged (`cp`, `filterwise_cp`, `ttm`) or that would not become smaller stay as
    they are. An optimizer of the model given holds the parameters of that one: make a new one for the copy.

    Parameters
    ----------
    model : Module
        A model that `apply`, `compress` or `load` returned, fine-tuned or not; left untouched.

    Raises
    ------
    RankfoldError
        If the model holds no factored layer.
    GaugeError
        If a layer's gauged factors, rounded to its data type, would compute something else.

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
    made: dict[tuple[int, ...], tuple[Factored, Factored]] = {}
    twins: list[Swap] = []
    for module, places in names.items():
        key = tuple(id(p) for n, p in module.named_parameters() if n.endswith("weight"))
        if key in made:  # tied to a layer that is gauged already
            first, gauged_first = made[key]
            one_bias = module.bias is not None and module.bias is first.bias
            twin = tied_twin(gauged_first, module.bias, one_bias=one_bias)
        else:
            twin = _gauged(module)
            if twin is None:
                continue
            made[key] = module, twin
        twins.append((tuple(places), twin))
    # Only now: a twin that has been swapped in holds the hooks of its place.
    new = swap_(new, twins, original=model)
    gauged = {place for places, _ in twins for place in places}
    choices = {n: replace(c, gauge=c.gauge or n in gauged) for n, c in plan.layers.items()}
    return remember_plan(new, replace(plan, layers=choices))


def _gauged(module: Factored) -> Factored | None:
    """Return the gauged twin of a layer; None if it is gauged, cannot be, or would not be smaller."""
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
