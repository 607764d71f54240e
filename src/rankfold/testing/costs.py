"""Checks that a blueprint's cost equals the cost of the built module."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from rankfold.cost import blueprint_cost
from rankfold.methods import Method
from rankfold.surgery.gauged import Gauged
from rankfold.testing.cases import SEED, LayerCase
from rankfold.testing.subject import Subject, count_macs, expect, random_ranks


def cost_is_the_modules(method: Method, case: LayerCase) -> None:
    """Parameters, MACs, feature maps and bytes of the blueprint equal those counted on the module."""
    subject = Subject.of(case)
    generator = torch.Generator().manual_seed(SEED)
    limits = method.max_ranks(subject.info)
    for ranks in [limits, *random_ranks(method, subject.info, generator, count=3)]:
        cost = blueprint_cost(method.blueprint(subject.info, ranks), subject.info)
        module = subject.random(method, ranks)
        params = sum(p.numel() for p in module.parameters())
        size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
        macs, fm = count_macs(module, subject.input), _feature_maps(module, subject.input)
        expect(cost.params == params, f"ranks {ranks}: the blueprint says {cost.params} parameters, not {params}")
        expect(cost.weight_bytes == size, f"ranks {ranks}: the blueprint says {cost.weight_bytes} bytes, not {size}")
        expect(cost.macs == macs, f"ranks {ranks}: the blueprint says {cost.macs} MACs, the forward pass does {macs}")
        expect(cost.fm == fm, f"ranks {ranks}: the blueprint says feature maps of {cost.fm}, the stages write {fm}")


def _feature_maps(module: nn.Module, x: Tensor) -> int:
    sizes: list[int] = []

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes.append(output.numel())

    stages = [m for m in module.children() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd | Gauged)]
    with ExitStack() as hooks, torch.no_grad():
        for stage in stages:
            hooks.callback(stage.register_forward_hook(count).remove)
        module(x)
    return sum(sizes)


def grid_is_valid(method: Method, case: LayerCase) -> None:
    """The rank grid is not empty, has no duplicates, lies within the limits and respects multiples."""
    info = Subject.of(case).info
    limits = method.max_ranks(info)
    expect(len(limits) > 0 and all(limit >= 1 for limit in limits), f"limits {limits} must be positive")
    for multiple in (1, 4):
        grid = list(method.rank_grid(info, multiple=multiple, points=8))
        expect(len(grid) > 0, f"multiple {multiple}: the rank grid is empty")
        expect(len(set(grid)) == len(grid), f"multiple {multiple}: the rank grid has duplicates")
        for ranks in grid:
            fits = len(ranks) == len(limits) and all(1 <= r <= m for r, m in zip(ranks, limits, strict=True))
            expect(fits, f"multiple {multiple}: the grid has {ranks}, the limits are {limits}")
