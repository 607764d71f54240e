"""The strategy ``rene``: planted ranks, budgets, the losses' slopes, trained factors, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods
from rankfold.cost import Pricing
from rankfold.cost.exploration import layer_of
from rankfold.errors import ConfigError, InfeasibleBudget, ModelError, UnknownNameError
from rankfold.inventory import inspect
from rankfold.records import Plan, Ranks
from rankfold.strategies import Problem
from rankfold.strategies.coefficients import RankLoss, expected_loss, nested_loss, optimize
from rankfold.strategies.mixtures import Axis, Mixtures
from rankfold.testing import ModelCase, make_problem, model_zoo

CNN = next(case for case in model_zoo() if case.id == "cnn")


def factors(layer: Any, method: str, ranks: Ranks, seed: int) -> Tensor:
    """Return a weight of exactly these ranks, of random factors."""
    generator = torch.Generator().manual_seed(seed)
    blueprint = methods.get(method).blueprint(layer, ranks)
    template = methods.prepare(methods.get(method), torch.randn(layer.weight_shape, generator=generator), layer)
    drawn = [torch.randn(f.shape, generator=generator) for f in template.factorize(ranks)]
    weight = methods.compose(blueprint, layer, drawn)
    return weight / weight.norm()


def problem_of(module: nn.Module, x: Tensor, chosen: Sequence[str], budget: str | None = None) -> Problem:
    case = ModelCase(id="one", build=lambda: module, input_shape=tuple(x.shape))
    bounds = None if budget is None else rf.Budget.parse(budget)
    return replace(make_problem(case, module, budget=bounds), methods=tuple(chosen))


def search(module: nn.Module, x: Tensor, method: str, **options: Any) -> Ranks:
    plan = rf.RENE(**options).plan(problem_of(module, x, (method,)))
    return plan.layers["0"].ranks


def linear(weight: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    module[0].weight.data = weight  # pyright: ignore[reportArgumentType]
    return module


@settings(max_examples=15, deadline=None)
@given(rank=st.integers(10, 58), seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 1.0, 1e3]))
def test_a_planted_rank_is_found_exactly_by_svd(rank: int, seed: int, scale: float) -> None:
    layer = layer_of("linear:120x120")
    module = linear(scale * factors(layer, "svd", (rank,), seed))
    assert search(module, torch.randn(1, 120), "svd", rank_min=10, rank_max=60, step=10) == (rank,)


def test_three_stages_find_a_planted_rank() -> None:
    """The space of Figure 3, {100, 200, ..., 800}, and its rank, at a quarter of the size."""
    module = linear(factors(layer_of("linear:420x420"), "svd", (60,), 0))
    problem = problem_of(module, torch.randn(1, 420), ("svd",))
    plan = rf.RENE(rank_min=25, rank_max=200, step=25, shrink=5).plan(problem)
    assert plan.layers["0"].ranks == (60,)
    assert plan.provenance.search["stages"] == 3


def test_the_toy_of_figure_three() -> None:
    module = linear(factors(layer_of("linear:1700x1700"), "svd", (240,), 0))
    options = {"rank_min": 100, "rank_max": 800, "step": 100}
    assert search(module, torch.randn(1, 1700), "svd", **options) == (240,)


def conv(weight: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False))
    module[0].weight.data = weight  # pyright: ignore[reportArgumentType]
    return module


@settings(max_examples=6, deadline=None)
@given(rank=st.integers(4, 14), seed=st.integers(0, 99))
def test_a_planted_rank_is_found_exactly_by_tt(rank: int, seed: int) -> None:
    layer = layer_of("conv:3x3x24x20")
    # In the interior, as here, two ranks of a train are equal; the kernel's ranks are at least as large.
    module = conv(factors(layer, "tt", (rank, rank, rank), seed))
    found = search(module, torch.randn(1, 24, 6, 6), "tt", rank_min=2, rank_max=16, step=4, shrink=4)
    assert found == (rank,) * 3


@settings(max_examples=3, deadline=None)
@given(rank=st.integers(2, 6), seed=st.integers(0, 9))
def test_a_planted_rank_is_found_exactly_by_cp(rank: int, seed: int) -> None:
    layer = layer_of("conv:3x3x12x12")
    module = conv(factors(layer, "cp", (rank,), seed))
    assert search(module, torch.randn(1, 12, 6, 6), "cp", rank_min=1, rank_max=10, step=3, shrink=3) == (rank,)


def test_a_planted_rank_of_a_large_layer_is_found_exactly_by_cp() -> None:
    layer = layer_of("conv:3x3x120x130")
    assert methods.get("cp").quick(layer) != methods.get("cp")
    weight = factors(layer, "cp", (11,), 0)
    x = torch.randn(1, weight.shape[1], 6, 6)
    assert search(conv(weight), x, "cp", rank_min=4, rank_max=16, step=4, shrink=4) == (11,)


LAYERS = {"qr": "linear:40x40", "ttm": "linear:36x36", "svd": "conv:3x3x24x20"}


@settings(max_examples=12, deadline=None)
@given(
    method=st.sampled_from(["tucker", "tt3", "spatial_svd", "svd", "qr", "ttm", "filterwise_cp"]),
    rank=st.integers(2, 7),
    seed=st.integers(0, 99),
)
def test_a_planted_rank_is_found_exactly_by_other_methods(method: str, rank: int, seed: int) -> None:
    rank = min(rank, 3) if method == "filterwise_cp" else rank
    layer = layer_of(LAYERS.get(method, "conv:3x3x24x20"))
    weight = factors(layer, method, tuple(min(rank, most) for most in methods.get(method).max_ranks(layer)), seed)
    module, x = (linear(weight), torch.randn(1, 40)) if weight.ndim == 2 else (conv(weight), torch.randn(1, 24, 6, 6))
    found = search(module, x[:, : weight.shape[1]], method, rank_max=16, step=4, shrink=4)
    assert found == tuple(min(rank, most) for most in methods.get(method).max_ranks(layer))


def test_three_stages_find_a_planted_tensor_train() -> None:
    """The space of Figure 3 and its rank, at an eighth of the size; benchmarks/rene.py has the full size."""
    module = conv(factors(layer_of("conv:3x3x112x112"), "tt", (30, 30, 30), 0))
    problem = problem_of(module, torch.randn(1, 112, 4, 4), ("tt",))
    plan = rf.RENE(rank_min=12, rank_max=96, step=12, shrink=4).plan(problem)
    assert plan.layers["0"].ranks == (30, 30, 30)
    assert plan.provenance.search["stages"] == 3


def test_free_ranks_may_differ() -> None:
    layer = layer_of("conv:3x3x24x20")
    module = conv(factors(layer, "tucker", (4, 11), 0))
    equal = search(module, torch.randn(1, 24, 6, 6), "tucker", rank_max=16, step=4, shrink=4)
    free = search(module, torch.randn(1, 24, 6, 6), "tucker", rank_max=16, step=4, shrink=4, free=True)
    assert (equal, free) == ((11, 11), (4, 11))


def test_free_ranks_of_a_position_with_fewer_ranks_than_rank_min() -> None:
    module = conv(factors(layer_of("conv:3x3x3x20"), "tucker", (7, 3), 0))
    found = search(module, torch.randn(1, 3, 6, 6), "tucker", rank_min=5, rank_max=12, step=4, shrink=4, free=True)
    assert found == (7, 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(48 * 4, 96), nn.ReLU(), nn.Linear(96, 64),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim > 1:  # spectra that fall, as those of trained weights do
            left, values, right = torch.linalg.svd(parameter.detach().flatten(1), full_matrices=False)
            falling = values[0] * torch.linspace(1, 0, len(values)) ** 2
            parameter.data = (left * falling @ right).reshape(parameter.shape)
    return model


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def used(plan: Plan, resource: str) -> float:
    pricing = Pricing.of_plan(inspect(network(), X), plan)
    return pricing.plan_cost(plan).get(resource) / pricing.inventory.total.get(resource)


@pytest.mark.parametrize(("resource", "share"), [("params", 0.6), ("params", 0.25), ("macs", 0.6)])
def test_a_budget_is_used_within_one_per_cent_or_no_rank_fits_any_more(resource: str, share: float) -> None:
    plan = rf.plan(network(), X, budget=f"{resource}<={share:.0%}", strategy="rene", methods="svd")
    assert used(plan, resource) <= share
    inventory, svd = inspect(network(), X), methods.get("svd")
    raised = [
        replace(plan, layers={**plan.layers, name: replace(choice, ranks=(choice.ranks[0] + 1,))})
        for name, choice in plan.factored.items()
        if choice.ranks < svd.max_ranks(inventory.layer(name))
    ]
    pricing = Pricing.of(inventory)
    smaller = [p for p in raised if all(pricing.is_smaller(pricing.candidate(inventory.layer(n), svd, c.ranks))
                                        for n, c in p.factored.items())]  # fmt: skip
    assert used(plan, resource) >= 0.99 * share - 1e-4 or all(used(p, resource) > share for p in smaller)
    assert used(plan, resource) >= 0.95 * share


def test_a_smaller_beta_never_costs_less() -> None:
    shares = [used(rf.plan(network(), X, strategy=rf.RENE(beta=beta)), "params") for beta in (1.0, 0.5, 0.1)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_gamma_has_no_influence_with_fixed_weights() -> None:
    plans = [rf.plan(network(), X, strategy=rf.RENE(gamma=gamma)).layers for gamma in (1.0, 0.4, 0.01)]
    assert plans[0] == plans[1] == plans[2]


def test_the_scale_trades_rank_for_error_monotonically() -> None:
    plans = [rf.plan(network(), X, budget=f"params<={share}%", strategy="rene") for share in (25, 50, 75)]
    losses = [plan.provenance.search["loss"] for plan in plans]
    assert losses == sorted(losses, reverse=True)


def test_the_same_plan_twice_and_in_spaces_of_any_multiple() -> None:
    first, second = (rf.plan(network(), X, strategy="rene") for _ in range(2))
    assert first == second
    multiple = rf.plan(network(), X, strategy="rene", rank_multiple=4)
    limits = {name: methods.get(c.method or "").max_ranks(inspect(network(), X).layer(name))
              for name, c in multiple.factored.items()}  # fmt: skip
    for name, choice in multiple.factored.items():
        assert all(r % 4 == 0 or r == most for r, most in zip(choice.ranks, limits[name], strict=True)), name


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.out = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x, x, x, need_weights=False)[0])


ENCODER_LAYERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "linear1",
    "linear2",
)


class Encoder(nn.TransformerEncoder):
    """Two layers, each with packed attention projections and two linear layers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        super().__init__(layer, 2, enable_nested_tensor=False)


def test_all_layers_of_a_transformer_are_searched() -> None:
    plan = rf.plan(Encoder().eval(), torch.randn(2, 5, 32), strategy=rf.RENE(rank_max=12, step=4))
    names = [f"layers.{i}.{name}" for i in range(2) for name in ENCODER_LAYERS]
    assert sorted(plan.factored) == sorted(names)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Attention, torch.randn(2, 5, 32)),
        (Encoder, torch.randn(2, 5, 32)),
        (lambda: nn.Sequential(nn.Conv1d(16, 32, 5), nn.ReLU(), nn.Conv1d(32, 32, 3)), torch.randn(1, 16, 20)),
        (lambda: nn.Sequential(nn.Conv3d(8, 16, 3), nn.ReLU(), nn.Conv3d(16, 16, 3)), torch.randn(1, 8, 6, 6, 6)),
    ],
)
def test_other_networks_are_searched_applied_saved_and_loaded(model: Any, x: Tensor, tmp_path: Any) -> None:
    torch.manual_seed(0)
    result = rf.compress(model().eval(), x, strategy=rf.RENE(rank_max=12, step=4), output=tmp_path / "out")
    torch.manual_seed(0)
    again = rf.load(tmp_path / "out", model().eval())
    assert result.plan.factored
    torch.testing.assert_close(again(x), result.model(x))


# The losses.


def mixtures(lr: float = 0.0) -> tuple[Mixtures, Tensor]:
    problem = problem_of(network(), X, ("svd",))
    layers = [problem.inventory.layer(name) for name in ("2", "6")]
    axes = [
        Axis(layer=layer, method=methods.get("svd"), limits=methods.get("svd").max_ranks(layer), low=1, high=30)
        for layer in layers
    ]
    drawn = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn[0, 3] = 0  # the first layer has three candidates
    return Mixtures(problem, axes, [[2, 8, 20], [1, 5, 10, 30]], lr=lr), drawn / drawn.sum(1, keepdim=True)


def mixed_loss(mixed: Mixtures, coefficients: Tensor) -> Tensor:
    """Return the first factor of eq. 6, written out."""
    total = torch.zeros((), dtype=torch.float64)
    for i, axis in enumerate(mixed.axes):
        weights = torch.stack([w.double() for w in mixed.candidates(i)])
        mix = torch.tensordot(coefficients[i, : len(weights)], weights, 1)
        total = total + (mixed.problem.weight(axis.layer.name).double() - mix).square().sum()
    return total


def test_the_decomposition_loss_and_its_slopes() -> None:
    mixed, coefficients = mixtures()
    value, slopes = mixed.decomposition(coefficients)
    wanted = coefficients.clone().requires_grad_()
    total = mixed_loss(mixed, wanted)
    assert value == pytest.approx(float(total.detach()), rel=1e-5)
    torch.testing.assert_close(slopes, torch.autograd.grad(total, wanted)[0], rtol=1e-4, atol=1e-6)


def test_nested_candidates_have_the_loss_of_their_mixture() -> None:
    mixed, coefficients = mixtures()
    errors = []
    for i, axis in enumerate(mixed.axes):
        weight = mixed.problem.weight(axis.layer.name).double()
        errors.append(torch.stack([(weight - w.double()).square().sum() for w in mixed.candidates(i)]))
    (value, slopes), (wanted, wanted_slopes) = nested_loss(errors)(coefficients), mixed.decomposition(coefficients)
    assert value == pytest.approx(wanted, rel=1e-4)
    # Slopes may differ by a constant per layer, which the softmax ignores.
    for ours, theirs, count in zip(slopes, wanted_slopes, (3, 4), strict=True):
        difference = (ours - theirs)[:count]
        torch.testing.assert_close(difference, difference.mean().expand(count), rtol=1e-3, atol=1e-5)


def test_the_mean_of_the_candidates_losses() -> None:
    errors = [torch.tensor([4.0, 1.0], dtype=torch.float64), torch.tensor([9.0, 4.0, 0.5], dtype=torch.float64)]
    p = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    value, slopes = expected_loss(errors, floor=0.5)(p)
    assert value == pytest.approx(0.25 * 4 + 0.75 * 1 + 0.2 * 9 + 0.3 * 4 + 0.5 * 0.5 + 0.5)
    assert slopes.tolist() == [[4.0, 1.0, 0.0], [9.0, 4.0, 0.5]]
    mixed = nested_loss(errors, floor=0.5)
    assert value > mixed(p)[0]
    one = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert expected_loss(errors)(one)[0] == nested_loss(errors)(one)[0] == 1.5


def best_sum(table: dict[str, list[tuple[int, float]]], limit: int) -> float:
    """Return the least sum of errors within a limit, by trying everything."""
    return min(
        sum(error for _, error in choice)
        for choice in product(*table.values())
        if sum(cost for cost, _ in choice) <= limit
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_budget_is_spent_almost_optimally(share: float) -> None:
    """The decomposition loss of the plan is near the least of all plans, which brute force finds."""
    model = network()
    problem = problem_of(model, X, ("svd",), f"params<={share:.0%}")
    inventory, svd = problem.inventory, methods.get("svd")
    layers = [layer for layer in inventory if layer.name != "0"]
    table: dict[str, list[tuple[int, float]]] = {}
    for layer in layers:
        weight = problem.weight(layer.name)
        values = torch.linalg.svdvals(weight.flatten(1).double())
        rows = []
        for rank in range(1, svd.max_ranks(layer)[0] + 1):
            candidate = problem.pricing.candidate(layer, svd, (rank,))
            if problem.pricing.is_smaller(candidate):
                rows.append((candidate.cost.params, float(values[rank:].square().sum())))
        table[layer.name] = rows
    plan = rf.RENE(rank_max=96).plan(problem)
    used_outside = problem.inventory.total.params - sum(inventory.costs[name].params for name in table)
    first = plan.layers["0"]
    if first.method is not None:
        used_outside -= inventory.costs["0"].params
        used_outside += problem.pricing.choice_cost("0", first).params
    limit = int(share * inventory.total.params) - used_outside
    total = sum(
        next(e for c, e in table[name] if c == problem.pricing.choice_cost(name, plan.layers[name]).params)
        for name in table
    )
    assert total <= 1.05 * best_sum(table, limit)


def test_training_follows_the_gradient_of_equation_six() -> None:
    mixed, coefficients = mixtures(lr=1e-3)
    before = [[[f.detach().clone().requires_grad_() for f in c] for c in layer] for layer in mixed.factors]
    total = torch.zeros(())
    for i, axis in enumerate(mixed.axes):
        blueprints = [axis.method.blueprint(axis.layer, ranks) for ranks in mixed.settings[i]]
        weights = [methods.compose(b, axis.layer, c) for b, c in zip(blueprints, before[i], strict=True)]
        mix = sum(float(p) * w for p, w in zip(coefficients[i], weights, strict=False))
        total = total + (mixed.problem.weight(axis.layer.name) - mix).square().sum() * 0.7
    gradients = torch.autograd.grad(total, [f for layer in before for c in layer for f in c])
    mixed.train(coefficients, 0.7)
    after = [f for layer in mixed.factors for c in layer for f in c]
    start = [f for layer in before for c in layer for f in c]
    for old, new, gradient in zip(start, after, gradients, strict=True):
        # The first step with Nesterov momentum 0.9 is 1.9 times the gradient.
        torch.testing.assert_close(new, old - 1.9e-3 * gradient, rtol=1e-4, atol=1e-6)


LOADS = torch.tensor([[0.25, 1.0, 0.0], [0.1, 0.5, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_rank_loss_is_equation_five(scale: float) -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64, requires_grad=True)
    wanted = (0.4 * ((p[0] @ LOADS[0]) ** 0.8 + (p[1] @ LOADS[1]) ** 0.8)) ** scale
    value, slopes = RankLoss(loads=LOADS, gamma=0.4, beta=0.8, scale=scale)(p.detach())
    assert value == pytest.approx(float(wanted.detach()))
    torch.testing.assert_close(slopes, torch.autograd.grad(wanted, p)[0])


@pytest.mark.parametrize("logarithmic", [True, False])
def test_the_updates_are_those_of_torch(logarithmic: bool) -> None:
    errors = [torch.tensor([4.0, 1.0], dtype=torch.float64), torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)]
    rank_loss = RankLoss(loads=LOADS, gamma=0.4, beta=0.8)
    ours = optimize(nested_loss(errors), rank_loss, iterations=7, lr=0.05, logarithmic=logarithmic)
    alphas = [torch.zeros(len(row), dtype=torch.float64, requires_grad=True) for row in errors]
    optimizer = torch.optim.SGD(alphas, lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(7):
        parts = [alpha.softmax(0) for alpha in alphas]
        loss = sum(p @ torch.minimum(e[:, None], e[None, :]) @ p for p, e in zip(parts, errors, strict=True))
        rank = 0.4 * sum((p @ load[: len(p)]) ** 0.8 for p, load in zip(parts, LOADS, strict=True))
        optimizer.zero_grad()
        (torch.log(loss * rank) if logarithmic else loss * rank).backward()  # pyright: ignore
        optimizer.step()
    for row, alpha in zip(ours, alphas, strict=True):
        torch.testing.assert_close(row[: len(alpha)], alpha.detach().softmax(0))
        assert not row[len(alpha) :].any()


def test_trained_factors_find_a_planted_rank_too() -> None:
    module = linear(factors(layer_of("linear:60x60"), "svd", (7,), 0))
    options: dict[str, Any] = {
        "factors": "sgd",
        "learning_rate": 0.05,
        "rank_min": 2,
        "rank_max": 20,
        "step": 4,
        "shrink": 4,
    }
    assert search(module, torch.randn(1, 60), "svd", **options) == (7,)


def test_validation_loss_needs_labels_and_uses_them() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    x, strategy = torch.randn(32, 20), rf.RENE(objective="validation", rank_max=12, step=4, iterations=20)
    with pytest.raises(ConfigError, match="'rene' with objective='validation' needs labels"):
        rf.plan(model, x[:1], strategy=strategy, calibration=[x])
    with torch.no_grad():
        labels = model(x).argmax(1)
    plan = rf.plan(model, x[:1], strategy=strategy, calibration=[(x, labels)])
    assert plan.factored


@pytest.mark.parametrize("lr", [1.0, 1e4])
def test_a_search_that_diverges_recovers(lr: float) -> None:
    module = linear(30 * factors(layer_of("linear:40x40"), "svd", (5,), 0))
    found = search(module, torch.randn(1, 40), "svd", factors="sgd", learning_rate=lr, rank_max=12, step=4, shrink=4)
    assert 1 <= found[0] <= 12


def test_cp_factors_that_diverge_do_not_end_in_the_smallest_ranks() -> None:
    """In the authors' code they become NaN, and argmax then returns the smallest rank of every layer."""
    module, x = conv(30 * factors(layer_of("conv:3x3x6x6"), "cp", (3,), 0)), torch.randn(1, 6, 4, 4)
    options: dict[str, Any] = {"rank_max": 3, "step": 2, "shrink": 2, "factors": "sgd", "iterations": 20}
    with pytest.raises(ModelError, match=r"diverges for layer '0'.* by 'cp'"):
        search(module, x, "cp", learning_rate=1e30, **options)


def test_a_search_that_diverges_again_and_again_names_the_layer() -> None:
    module = linear(30 * factors(layer_of("linear:40x40"), "svd", (5,), 0))
    with pytest.raises(ModelError, match=r"diverges for layer '0'.* by 'svd'.* Set learning_rate below 1e\+30"):
        search(module, torch.randn(1, 40), "svd", factors="sgd", learning_rate=1e30, rank_max=12, step=4)


# Bad input.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank_min": 0}, "rank_min must be"),
        ({"rank_min": 9, "rank_max": 8}, r"rank_max must be an integer >= rank_min \(9\)"),
        ({"step": 0}, "step must be"),
        ({"shrink": 1}, "shrink must be"),
        ({"gamma": 0}, "gamma must be"),
        ({"beta": 1.5}, "beta must be"),
        ({"learning_rate": -1}, "learning_rate must be"),
        ({"iterations": 0}, "iterations must be"),
        ({"free": 1}, "free must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rf.RENE(**options)


def test_bad_names() -> None:
    with pytest.raises(UnknownNameError, match="objective"):
        rf.RENE(objective="test")  # pyright: ignore[reportArgumentType]


def test_a_space_above_break_even_is_refused_with_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"'0': no rank from 50 to 60 of tt makes it smaller"):
        rf.plan(network(), X, strategy=rf.RENE(rank_min=50, rank_max=60), methods="tt", exclude="re:[68]")
    plan = rf.plan(network(), X, strategy=rf.RENE(rank_min=20, rank_max=60))
    assert "no rank from 20 to 60" in str(plan.layers["0"].reason)


def test_ranks_that_a_method_does_not_have_are_refused_with_the_layer() -> None:
    words = r"'0': no rank from 50 to 60 of tt makes it smaller; its largest rank is 24"
    with pytest.raises(ConfigError, match=words):
        rf.plan(network(), X, strategy=rf.RENE(rank_min=50, rank_max=60), methods="tt", exclude="re:[68]")


def test_a_space_without_a_multiple_is_refused_with_the_layer() -> None:
    words = r"'6': no multiple of 64 from 1 to 100 of svd makes it smaller"
    with pytest.raises(ConfigError, match=words):
        rf.plan(network(), X, strategy=rf.RENE(), methods="svd", include="6", rank_multiple=64)


def test_a_budget_below_the_smallest_ranks_is_refused() -> None:
    with pytest.raises(InfeasibleBudget, match=r"with ranks of at least 1\. Loosen the budget"):
        rf.plan(network(), X, budget="params<=1%", strategy="rene")
    with pytest.raises(InfeasibleBudget, match=r"of at least 2\. Use a smaller rank_min\. Loosen the budget"):
        rf.plan(network(), X, budget="params<=1%", strategy=rf.RENE(rank_min=2))
