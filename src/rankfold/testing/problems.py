"""Small networks for strategies to plan, and their problems."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from rankfold.candidates import DEFAULT_METHODS, Estimator, TableConfig, build_table
from rankfold.cost import Pricing
from rankfold.evaluation import output_error
from rankfold.inventory import inspect, layer_weight, static_inventory
from rankfold.pruning import channel_groups
from rankfold.records import Budget, Candidate, CandidateTable, ChannelGroups, Plan
from rankfold.strategies import Problem
from rankfold.surgery import apply_plan_, copy_model, plan_of
from rankfold.surgery.apply import inner_plan, outer_plan, remember_plan
from rankfold.surgery.narrowed import narrowed_copy
from rankfold.surgery.values import take_over_
from rankfold.testing.cases import SEED
from rankfold.tune import FineTune
from rankfold.workbench import Bench, CompressedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelCase:
    """A network and an input for it.

    Parameters
    ----------
    id : str
        A name, unique in `model_zoo`.
    build : callable
        Returns the network; its random weights are the same on every call.
    input_shape : tuple of int
        Shape of the input.
    compressible : bool
        Whether any of its layers can be compressed.
    prunable : bool
        Whether it has channels that can be removed.
    """

    id: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    compressible: bool = True
    prunable: bool = True

    def model(self) -> nn.Module:
        """Return the network; no global generator is touched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.build().eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                _concentrate_(parameter)
        return model

    def input(self) -> Tensor:
        """Return the input, the same on every call."""
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(SEED))


def make_problem(
    case: ModelCase,
    model: nn.Module,
    *,
    budget: Budget | None = None,
    fixed: Mapping[str, Candidate] | None = None,
    gauge: bool = False,
) -> Problem:
    """Return the problem of compressing a model by its weights alone, with the default methods.

    A strategy that loops has a batch with the model's own predictions as labels, the distance from the model's outputs
    as the metric, and a recipe of one training step.
    """
    resources = () if budget is None else budget.resources
    pricing = Pricing.of(inspect(model, case.input()), gauge=gauge, resources=resources)
    weight = partial(layer_weight, model)
    decided = dict(fixed or {})

    @cache
    def table() -> CandidateTable:
        return build_table(pricing, weight, TableConfig(points=16), fixed=decided)

    return Problem(
        pricing=pricing,
        find_groups=partial(_groups, case),
        table=table,
        weight=weight,
        budget=budget,
        seed=SEED,
        methods=DEFAULT_METHODS,
        estimator=Estimator(model, pricing.inventory, table, weight_table=table, batches=None, moments=None),
        fixed=decided,
        workbench=_bench(case, model),
    )


@cache
def _groups(case: ModelCase) -> ChannelGroups:
    return channel_groups(case.model(), case.input())


def _bench(case: ModelCase, model: nn.Module) -> Bench[CompressedModel]:
    with torch.no_grad():
        batches = [(case.input(), model(case.input()).argmax(-1))]
    recipe = FineTune(data=batches, loss="distill", distill="mse", max_steps=1)
    metric = output_error(model, batches)

    def make(plan: Plan, like: nn.Module | None) -> CompressedModel:
        made = applied(model, plan)
        if like is not None:
            take_over_(made, like, static_inventory(model))
        return CompressedModel(model=made)

    return Bench(model, make, batches=batches, metric=metric, recipe=recipe)


def applied(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with the plan applied."""
    if not plan.narrowing:
        return apply_plan_(copy_model(model), plan)
    new = apply_plan_(narrowed_copy(model, plan.narrowing), inner_plan(plan))
    return remember_plan(new, outer_plan(plan_of(new), plan))


@torch.no_grad()
def _concentrate_(weight: Tensor) -> None:
    """Make the singular values of a weight decrease geometrically to a hundredth, similar to a trained weight's."""
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    falling = values[0] * torch.logspace(0, -2, len(values))
    weight.copy_(((left * falling) @ right).reshape(weight.shape))


def _sequence(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def _mlp() -> nn.Module:
    return _sequence(
        fc1=nn.Linear(24, 32),
        act1=nn.ReLU(),
        fc2=nn.Linear(32, 16),
        act2=nn.ReLU(),
        fc3=nn.Linear(16, 10, bias=False),
    )


def _cnn() -> nn.Module:
    return _sequence(
        conv1=nn.Conv2d(3, 12, 3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(12),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(12, 16, 3, stride=2, padding=1),
        depthwise=nn.Conv2d(16, 16, 3, groups=16, padding=1),
        pointwise=nn.Conv2d(16, 24, 1),
        act2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(2),
        flat=nn.Flatten(),
        fc1=nn.Linear(96, 10),
    )


def _grouped() -> nn.Module:
    return _sequence(
        conv1=nn.Conv2d(8, 16, (3, 5), groups=2, padding=(1, 2), padding_mode="circular"),
        act1=nn.ReLU(),
        up=nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
        act2=nn.ReLU(),
        conv2=nn.Conv2d(8, 8, 3, dilation=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc1=nn.Linear(8, 12),
    )


class _Tied(nn.Module):
    """One layer called twice, two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 20)
        self.fc2 = nn.Linear(20, 20)
        self.fc3 = nn.Linear(20, 20)
        self.fc3.weight = self.fc2.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(self.fc1(x).relu()).relu()).relu())


def _incompressible() -> nn.Module:
    return _sequence(
        depthwise=nn.Conv2d(2, 2, 3, groups=2),
        norm=nn.BatchNorm2d(2),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc1=nn.Linear(2, 2),  # rank one has as many parameters as the layer
    )


@cache
def model_zoo() -> tuple[ModelCase, ...]:
    """Return the networks: an MLP, a CNN, one with grouped and transposed layers, a tied and an incompressible one."""
    return (
        ModelCase(id="mlp", build=_mlp, input_shape=(2, 24)),
        ModelCase(id="cnn", build=_cnn, input_shape=(2, 3, 10, 9)),
        ModelCase(id="grouped", build=_grouped, input_shape=(1, 8, 7, 8)),
        ModelCase(id="tied", build=_Tied, input_shape=(3, 20), prunable=False),
        ModelCase(
            id="incompressible", build=_incompressible, input_shape=(2, 2, 5, 5), compressible=False, prunable=False
        ),
    )
