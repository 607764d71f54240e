"""The global search: exact over its table, within every budget, and clear about what it needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import strategies
from rankfold.candidates import Estimator, ProxyConfig, TableConfig, build_table
from rankfold.candidates.network import NetworkProxy
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, InfeasibleBudget, UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.records import Budget, Candidate, CandidateTable, Cost, LayerInfo, Plan
from rankfold.strategies import Problem
from rankfold.strategies.compressnas import CompressNAS


class Net(nn.Module):
    """A residual network with convolutions of several costs and a large classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(12, 40), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.conv2(self.conv1(x).relu())).relu()
        return self.fc2(self.fc1(x.mean((2, 3))).relu())


X = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():  # spectra that fall, as those of trained networks do
        for weight in (p for p in model.parameters() if p.ndim > 1):
            left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            falling = 3 * values[0] * torch.logspace(0, -1.5, len(values))
            weight.copy_(((left * falling) @ right).reshape(weight.shape))
    return model


def images(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)]


def pose(model: nn.Module, points: int, methods: tuple[str, ...], **options: Any) -> Problem:
    """Return a problem with a small table, judged by the network."""
    pricing, weight = Pricing.of(inspect(model, X)), partial(layer_weight, model)
    table = build_table(pricing, weight, TableConfig(methods=methods, points=points), **options)
    estimator = Estimator(
        model, pricing.inventory, lambda: table, weight_table=lambda: table, batches=images(), moments=None
    )
    return Problem(pricing=pricing, table=lambda: table, weight=weight, methods=methods, estimator=estimator, **options)


def counted(model: nn.Module, plan: Plan) -> Cost:
    return inspect(rf.apply(model, plan), X).total


def picks_of(table: CandidateTable, plan: Plan) -> list[Candidate]:
    return [
        next(c for c in table.rows[name] if (c.method, c.ranks) == (choice.method, choice.ranks))
        for name, choice in plan.factored.items()
    ]


@pytest.mark.parametrize(
    "budget", ["params<=75%", "params<=60%, macs<=55%", "params<=65%, macs<=60%, flash<=62%, memory<=85%", "macs<=45%"]
)
def test_equals_brute_force(budget: str) -> None:
    model = network()
    problem = replace(pose(model, 3, ("svd",)), budget=Budget.parse(budget))
    table, strategy = problem.table(), strategies.get("compressnas", {"rivals": ()})
    assert problem.estimator is not None
    assert problem.budget is not None
    losses = problem.estimator.single(ProxyConfig())
    best = float("inf")
    choices = [[None, *row] for row in table.rows.values()]
    within = 0
    for chosen in itertools.product(*choices):
        picks = [c for c in chosen if c is not None]
        if not problem.budget.exceeded(table.cost(picks), table.total):
            within += 1
            best = min(best, sum(losses[c.layer][c.method, c.ranks] for c in picks))
    assert 10 < within < len(list(itertools.product(*choices)))
    plan = strategy.plan(problem)
    chosen = picks_of(table, plan)
    assert sum(losses[c.layer][c.method, c.ranks] for c in chosen) == pytest.approx(best, rel=1e-9)
    search = plan.provenance.search
    assert search["proxy"] == "fisher+network"
    assert search["predicted_loss"] == pytest.approx(best, rel=1e-9)
    assert search["bound"] == pytest.approx(best, rel=1e-6)
    assert search["bound"] <= search["predicted_loss"]
    assert not problem.budget.exceeded(counted(model, plan), table.total)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("resource", ["params", "macs", "flash"])
def test_damage_falls_as_the_budget_grows(resource: str, calibrated: bool) -> None:
    model = network()
    before = inspect(model, X).total
    problem = pose(model, 8, ("svd", "tucker"))
    plans = []
    for percent in (30, 45, 60, 75, 90):
        budget = Budget.parse(f"{resource}<={percent}%")
        if calibrated:
            plans.append(strategies.get("compressnas", {"rivals": ()}).plan(replace(problem, budget=budget)))
        else:
            plans.append(rf.plan(model, X, budget=budget))
        assert not budget.exceeded(counted(model, plans[-1]), before)
    loss = [plan.provenance.search["predicted_loss"] for plan in plans]
    assert loss == sorted(loss, reverse=True)
    assert len(set(loss)) == 5
    assert {plan.provenance.search["proxy"] for plan in plans} == {"fisher+network" if calibrated else "weight"}


def test_it_does_less_damage_than_a_rule() -> None:
    """To what it minimizes, it does no more than any other plan within the budget; here to the network, too."""
    model, data = network(), torch.cat(images(5))
    with torch.no_grad():
        dense = model(data)
        worse = {
            name: float((rf.apply(model, plan)(data) - dense).square().sum() / dense.square().sum())
            for name in ("compressnas", "energy", "uniform")
            for plan in [rf.plan(model, X, budget="params<=50%", strategy=name, calibration=images())]
        }
    assert worse["compressnas"] < min(worse["energy"], worse["uniform"]), worse


@pytest.mark.parametrize("percent", [30, 50, 70])
@pytest.mark.parametrize("samples", [8, 16])
def test_of_the_plans_of_several_proxies_the_one_closest_on_other_samples_is_returned(
    percent: int, samples: int
) -> None:
    """On the samples after those of the proxy, or half of all; without the compared ones in the factors."""
    model, data = network(), images()
    compared_on, factors_of = (data[1], data[:1]) if samples == 8 else (data[0], data[1:])
    options: dict[str, Any] = {"budget": f"params<={percent}%", "calibration": data, "methods": "svd"}
    plan = rf.plan(model, X, strategy=rf.CompressNAS(samples=samples), **options)
    compared = plan.provenance.search["compared"]
    assert list(compared) == ["fisher+network", "fisher", "weight", "uniform"]
    with torch.no_grad():
        dense = model(compared_on)
    plans = dict[str, Plan]()
    for proxy, loss in compared.items():
        plans[proxy] = rf.plan(model, X, strategy=rf.CompressNAS(proxy=proxy, samples=samples), **options)
        with torch.no_grad():
            small = rf.apply(model, plans[proxy], factors_of, batchnorm=False)(compared_on)
        assert float((small - dense).square().sum() / dense.square().sum()) == pytest.approx(loss, rel=1e-3)
    best = min(compared, key=compared.__getitem__)
    assert plan.provenance.search["proxy"] == plan.provenance.config["proxy"] == best
    assert plan.layers == plans[best].layers
    assert rf.plan(model, X, strategy=rf.CompressNAS(**plan.provenance.config), **options).layers == plan.layers


def test_the_proxy_uniform_is_the_strategy_uniform() -> None:
    given: dict[str, Any] = {"budget": "params<=50%", "calibration": images()}
    plan = rf.plan(network(), X, strategy=rf.CompressNAS(proxy="uniform"), **given)
    assert plan.factored == rf.plan(network(), X, strategy="uniform", **given).factored
    assert plan.provenance.search == {"proxy": "uniform"}


def test_a_rival_that_cannot_meet_the_budget_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise InfeasibleBudget("out of reach")

    monkeypatch.setattr(strategies.Uniform, "select", fails)
    plan = rf.plan(network(), X, budget="params<=50%", calibration=images(), methods="svd")
    assert list(plan.provenance.search["compared"]) == ["fisher+network", "fisher", "weight"]


@pytest.mark.parametrize("tolerance", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize("proxy", ["weight", "fisher", "network"])
def test_without_a_budget_the_tolerance_decides(proxy: str, tolerance: float) -> None:
    model = network()
    options: dict[str, Any] = {"calibration": images(), "methods": "svd"}
    plan = rf.plan(model, X, strategy=rf.CompressNAS(proxy=proxy, points=4, tolerance=tolerance), **options)
    loss = plan.provenance.search["predicted_loss"]
    assert loss <= tolerance
    params, total = counted(model, plan).params, inspect(model, X).total.params
    if not plan.factored:
        return
    tighter = {"params": params - max(2, total // 500)}
    try:
        other = rf.plan(model, X, budget=tighter, strategy=rf.CompressNAS(proxy=proxy, points=4), **options)
    except InfeasibleBudget:
        return
    assert other.provenance.search["predicted_loss"] > tolerance, "fewer parameters would be tolerable"


@pytest.mark.parametrize("fixed", [{}, {"conv1": ("svd", 2)}])
def test_rounds_measure_layers_together(fixed: dict[str, Any]) -> None:
    model, data = network(), images()

    def together(plan: Plan) -> float:
        small = rf.apply(model, plan, reconstruct="weights", batchnorm=False)
        with torch.no_grad():
            pairs = [(small(x), model(x)) for x in data]
        return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)

    options: dict[str, Any] = {
        "budget": "params<=35%", "calibration": data, "data_aware": False, "methods": "svd", "overrides": fixed,
    }  # fmt: skip
    alone = rf.plan(model, X, strategy=rf.CompressNAS(points=5), **options)
    assert "together" not in alone.provenance.search
    found = [rf.plan(model, X, strategy=rf.CompressNAS(points=5, rounds=rounds), **options) for rounds in (1, 3)]
    for plan, rounds in zip(found, (1, 3), strict=True):
        history = plan.provenance.search["together"]
        assert 1 <= len(history) <= rounds + 1
        assert history == sorted(history, reverse=True)
        assert history[0] == pytest.approx(together(alone), rel=1e-4)
        assert history[-1] == pytest.approx(together(plan), rel=1e-4)
        assert not Budget.parse("params<=35%").exceeded(counted(model, plan), inspect(model, X).total)
        if fixed:
            assert (plan.layers["conv1"].method, plan.layers["conv1"].ranks) == ("svd", (2,))
    assert len(found[0].provenance.search["together"]) == 2, "one round is enough to find something better here"
    assert together(found[1]) <= together(found[0]) < together(alone)
    assert found[0].layers != alone.layers


def test_the_same_search_twice_is_the_same_plan() -> None:
    model = network()
    options: dict[str, Any] = {
        "budget": "macs<=50%",
        "calibration": images(),
        "strategy": rf.CompressNAS(rounds=1, points=3),
    }
    state = torch.get_rng_state()
    first, second = (rf.plan(model, X, methods="svd", **options).to_json() for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_fixed_and_kept_layers() -> None:
    model = network()
    overrides = {"fc1": None, "conv2": ("tucker", (4, 4))}
    plan = rf.plan(model, X, budget="params<=60%", overrides=overrides)
    assert plan.layers["fc1"].method is None
    assert (plan.layers["conv2"].method, plan.layers["conv2"].ranks) == ("tucker", (4, 4))
    assert not Budget.parse("params<=60%").exceeded(counted(model, plan), inspect(model, X).total)
    kept = rf.plan(model, X, overrides={"*": ("svd", 0.9)})
    assert all(choice.method == "svd" for choice in kept.layers.values())
    for name in plan.kept:
        assert plan.layers[name].reason


def test_gauged_candidates_buy_less_damage() -> None:
    model = network()
    loss = {}
    for gauge in (True, False):
        plan = rf.plan(model, X, budget="params<=50%", gauge=gauge)
        assert not Budget.parse("params<=50%").exceeded(counted(model, plan), inspect(model, X).total)
        assert any(choice.gauge for choice in plan.factored.values()) == gauge
        loss[gauge] = plan.provenance.search["predicted_loss"]
    assert loss[True] < loss[False]


def test_bounds_that_cannot_be_met_together() -> None:
    model = network()
    table = pose(model, 64, ("svd", "tucker", "spatial_svd")).table()
    least = {r: table.least(r) for r in ("params", "fm")}
    assert strategies.get("compressnas")
    with pytest.raises(InfeasibleBudget, match="not all of them together") as caught:
        # The fewest parameters need every layer factored, and then each writes more feature maps.
        rf.plan(model, X, budget={"params": least["params"], "fm": least["fm"]})
    assert [row[0] for row in caught.value.rows] == ["params", "fm"]
    assert all(asked >= reachable for _, asked, reachable, _ in caught.value.rows)
    assert rf.plan(model, X, budget={"params": least["params"]}).factored
    with pytest.raises(InfeasibleBudget, match="cannot be met with the methods"):
        rf.plan(model, X, budget={"params": least["params"] - 1})


def test_a_layer_that_takes_too_much_ram_may_not_be_kept() -> None:
    """Between its input and output of 16 channels each, a factored layer needs one of them and a few channels."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    plan = rf.plan(model, X, budget="ram<=75%")
    assert set(plan.factored) == {"2"}
    both = rf.plan(model, X, budget="ram<=60%, params<=40%")
    assert "2" in both.factored
    assert counted(model, both).params <= 0.4 * inspect(model, X).total.params
    assert both.provenance.search["predicted_loss"] > plan.provenance.search["predicted_loss"]
    assert (
        rf.plan(model, X, budget="params<=99%").provenance.search["predicted_loss"]
        < plan.provenance.search["predicted_loss"]
    )
    rounds = rf.plan(model, X, budget="ram<=75%", calibration=images(), strategy=rf.CompressNAS(points=3, rounds=1))
    assert set(rounds.factored) == {"2"}
    with pytest.raises(InfeasibleBudget):
        rf.plan(model, X, budget="ram<=1%")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": {"proxy": "network"}}, ConfigError, "'network' needs calibration data.*proxy='weight'"),
        ({"strategy": {"proxy": "fisher+network"}}, ConfigError, "network' needs calibration data"),
        ({"strategy": {"proxy": "fisher"}}, ConfigError, "'fisher' needs calibration data"),
        ({"strategy": {"rounds": 1}}, ConfigError, "rounds need calibration data.*rounds=0"),
        ({"strategy": {"taps": ["fc3"]}, "calibration": images()}, UnknownNameError, "tap .*'fc3'.*Did you mean 'fc"),
        ({"strategy": {"proxy": "accuracy"}}, ConfigError, "proxy must be one of auto, weight.*Got 'accuracy'"),
        ({"strategy": {"points": 1}}, ConfigError, "points must be an integer >= 2"),
        ({"strategy": {"samples": 0}}, ConfigError, "samples must be an integer >= 1"),
        ({"strategy": {"taps": "fc1"}}, ConfigError, "taps must be a list"),
        ({"strategy": {"rounds": -1}}, ConfigError, "rounds must be an integer >= 0"),
        ({"strategy": {"rivals": ["auto"]}}, ConfigError, "rivals must be a list of weight, uniform, fisher"),
        ({"strategy": {"rivals": ["fisher"]}}, ConfigError, "'fisher' needs calibration data"),
        (
            {"strategy": {"rivals": ["fisher"], "widths": [0.5]}},
            ConfigError,
            "rivals cannot be combined with widths",
        ),
        ({"strategy": {"proxy": "uniform", "widths": [0.5]}}, ConfigError, "proxy='uniform' cannot be combined"),
        ({"strategy": {"tolerance": 0}}, ConfigError, "tolerance must be a number above 0"),
        ({"strategy": {"tolerance": float("nan")}}, ConfigError, "tolerance must be a number above 0"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], error: type[Exception], message: str) -> None:
    def search(strategy: dict[str, Any], **others: Any) -> rf.Plan:
        return rf.plan(network(), X, budget="params<=50%", strategy=rf.CompressNAS(**strategy), **others)

    with pytest.raises(error, match=message):
        search(**options)


def test_without_an_estimator() -> None:
    problem = replace(pose(network(), 3, ("svd",)), estimator=None)
    with pytest.raises(ConfigError, match="needs an estimator"):
        strategies.get("compressnas").plan(problem)


def test_options_are_those_of_the_proxy_and_more() -> None:
    config = CompressNAS(proxy="network", samples=3, points=4, taps=("a",), rounds=2)
    assert config.proxy_options == ProxyConfig(proxy="network", samples=3, points=4, taps=("a",))


def test_rounds_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second search with rounds runs the network only for other selections, and returns the same plan."""
    calls: list[str] = []
    losses = NetworkProxy.losses

    def counted_losses(self: NetworkProxy, layer: LayerInfo, weights: Sequence[Tensor]) -> list[float]:
        calls.append(layer.name)
        return losses(self, layer, weights)

    monkeypatch.setattr(NetworkProxy, "losses", counted_losses)
    options: dict[str, Any] = {
        "calibration": images(),
        "strategy": rf.CompressNAS(rounds=1, points=3),
        "cache": tmp_path,
    }
    first = rf.plan(network(), X, budget="params<=40%", **options)
    assert calls
    calls.clear()
    assert rf.plan(network(), X, budget="params<=40%", **options) == first
    assert not calls
    rf.plan(network(), X, budget="params<=60%", **options)  # other picks: only the rounds are measured
    assert calls
