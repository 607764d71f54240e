"""Latency as a resource: budgets, candidates that cost time, corrected plans, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods
from rankfold.api.options import search_of
from rankfold.api.planning import Planner
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, NoisyMachine, RankfoldError
from rankfold.records import LATENCY, Plan
from rankfold.testing.clockwork import BLOCK, Clockwork
from rankfold.timing import Target, Timer

CLOCK = {"target": "clockwork", "methods": ("svd",)}


def ratio(net: nn.Module, x: Tensor, plan: Plan) -> float:
    """Measure a plan's model on the clockwork."""
    return Timer(net, x, Target(runtime="clockwork")).compare_plan(plan).ratio


def test_bounds_are_read_and_written() -> None:
    assert str(rf.Budget.parse("latency<=4ms")) == "latency<=4000000"
    assert str(rf.Budget.parse("latency<=70%, params<=50%")) == "latency<=70%, params<=50%"
    assert rf.Budget.parse({"latency": "250us"}).bounds[0].value == 250_000
    with pytest.raises(BudgetError, match=r"latency\(2\) cannot be bounded: latency belongs to the whole model"):
        rf.Budget.parse("latency(2)<=50%")
    with pytest.raises(BudgetError, match="unknown unit 'KiB' of latency. Use .*ns, us, ms"):
        rf.Budget.parse("latency<=4KiB")


@pytest.mark.parametrize("surprise", [0, 400])
@pytest.mark.parametrize("budget", ["latency<=60%", "latency<=60%, params<=70%", "latency<=180us"])
def test_plans_meet_the_bound_as_measured(
    net: nn.Module, x: Tensor, clock: Clockwork, budget: str, surprise: int
) -> None:
    clock.surprise_ns = surprise
    plan = rf.plan(net, x, budget=budget, **CLOCK)
    dense = Timer(net, x, Target(runtime="clockwork")).dense.ns
    limit = rf.Budget.parse(budget).bounds[0]
    allowed = limit.value if limit.relative else limit.value / dense
    measured = ratio(net, x, plan)
    assert 0.85 * allowed <= measured <= allowed
    assert plan.provenance.budget == str(rf.Budget.parse(budget))
    assert plan.provenance.search[LATENCY]["measured_ns"] == round(measured * dense)
    assert Plan.from_json(plan.to_json()) == plan


def test_ranks_fill_the_blocks_of_the_runtime(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    """A rank that fills its block takes no more time than the ranks below it, and has less error."""
    net = nn.Sequential(nn.Conv2d(3, 300, 3), nn.ReLU(), nn.Conv2d(300, 300, 3)).eval()  # ranks 5, 10, ...
    grid = methods.get("svd").rank_grid(rf.inspect(net, x).layer("2"))
    assert (80,) in grid
    assert (88,) not in grid, "only the block adds this rank"
    plan = rf.plan(net, x, budget="latency<=50%", **CLOCK)
    assert plan.factored
    assert all(rank % BLOCK == 0 for choice in plan.factored.values() for rank in choice.ranks)
    free = rf.plan(net, x, budget="params<=47%", methods="svd")
    assert any(rank % BLOCK for choice in free.factored.values() for rank in choice.ranks), "the negative control"


@pytest.mark.parametrize("strategy", ["compressnas", "uniform", "energy"])
def test_slower_candidates_are_refused(net: nn.Module, x: Tensor, clock: Clockwork, strategy: str) -> None:
    clock.stage_ns = 8_000  # a second stage costs more than the small layers save
    plan = rf.plan(net, x, budget="params<=75%", strategy=strategy, **CLOCK)
    times = Timer(net, x, Target(runtime="clockwork")).layers
    inventory = rf.inspect(net, x)
    for name, choice in plan.factored.items():
        layer = inventory.layer(name)
        assert times.ns(layer, methods.chosen_blueprint(layer, choice)) < times.ns(layer, None)
    assert plan.kept["8"] == "no candidate is faster than the layer on the target"
    assert ratio(net, x, plan) <= 1
    free = rf.plan(net, x, budget="params<=75%", strategy="uniform", never_slower=False, **CLOCK)
    assert "8" in free.factored


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"strategy": "vbmf"}, None),
        ({"strategy": "rene"}, "params<=80%"),
        ({"strategy": rf.Norton(ratio=0.25, rank=2), "methods": None}, None),
        ({"strategy": rf.CompressNAS(widths=(0.5,))}, "params<=40%"),
    ],
    ids=["vbmf", "rene", "norton", "joint"],
)
def test_slower_factors_are_refused_outside_of_the_table(
    net: nn.Module, x: Tensor, clock: Clockwork, options: dict[str, Any], budget: str | None
) -> None:
    def planned(*, never_slower: bool) -> tuple[Plan, set[str]]:
        search = search_of({**CLOCK, **options, "never_slower": never_slower})
        planner = Planner(net, x, search, [torch.randn(4, 3, 8, 8)])
        plan = planner.plan(None if budget is None else rf.Budget.parse(budget))
        costs, dense = planner.pricing.layer_costs(plan), planner.pricing.narrowed(plan.narrowing).inventory.costs
        return plan, {n for n in plan.factored if costs[n].get(LATENCY) >= dense[n].get(LATENCY)}

    clock.stage_ns = 8_000
    plan, slower = planned(never_slower=True)
    assert plan.factored or plan.narrowing
    assert not slower
    assert planned(never_slower=False)[1], "the negative control"


def test_layers_that_the_example_does_not_reach_are_compressed_on_a_target(clock: Clockwork) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 64), nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    plan = rf.plan(Experts().eval(), torch.randn(1, 64), budget="params<=60%", **CLOCK)
    assert "unused" in plan.factored


def test_a_busy_machine_at_the_end_does_not_cost_the_model(
    net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Timer, model: nn.Module) -> None:
        raise NoisyMachine("this machine is too busy to tell the time of the compressed model")

    monkeypatch.setattr(Timer, "compare", busy)
    output = tmp_path / "out"
    result = rf.compress(net, x, budget="params<=75%", never_slower=False, output=output, **CLOCK)
    assert result.report.latency is None
    assert "latency was not measured: this machine is too busy" in rf.Report.load(output).to_markdown()
    assert torch.equal(rf.load(output, net)(x), result.model(x))


def test_models_that_are_slower_as_a_whole_are_refused(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    slow = rf.plan(net, x, budget="params<=70%", **CLOCK)
    clock.surprise_ns = 150_000
    assert ratio(net, x, slow) > 1
    with pytest.raises(InfeasibleBudget, match=r"out of reach on target 'clockwork.*never_slower=False"):
        rf.plan(net, x, budget="params<=30%", **CLOCK)
    assert rf.plan(net, x, budget="params<=30%", never_slower=False, **CLOCK).factored


def test_a_bound_out_of_reach_says_how_low_it_goes(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    with pytest.raises(InfeasibleBudget, match=r"budget 'latency<=5%' is out of reach .* models tried takes") as error:
        rf.plan(net, x, budget="latency<=5%", **CLOCK)
    ((resource, asked, least, dense),) = error.value.rows
    assert resource == LATENCY
    assert asked < least < dense
    plan = rf.plan(net, x, budget=f"latency<={least * 1.02:.0f}", **CLOCK)
    assert ratio(net, x, plan) * dense <= 1.03 * least
    with pytest.raises(InfeasibleBudget, match="latency<=60 is an amount; for a share, write latency<=60%"):
        rf.plan(net, x, budget="latency<=60", **CLOCK)


def test_a_bound_that_is_met_already_is_refused(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    with pytest.raises(BudgetError, match="the model already meets budget 'latency<=1000000000'"):
        rf.plan(net, x, budget="latency<=1s", **CLOCK)


def test_a_bound_without_a_target_is_for_torch(
    net: nn.Module, x: Tensor, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankfold.api.planning.DEFAULT_RUNTIME", "clockwork")
    plan = rf.plan(net, x, budget="latency<=70%")
    assert plan.provenance.search[LATENCY]["target"].startswith("clockwork")
    assert rf.plan(net, x, budget="params<=50%").provenance.search.get(LATENCY) is None


def test_reports_have_the_measured_latency(net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path) -> None:
    result = rf.compress(net, x, budget="latency<=60%, params<=80%", output=tmp_path / "out", **CLOCK)
    report = result.report
    assert report.latency is not None
    assert report.latency[1] / report.latency[0] == pytest.approx(ratio(net, x, result.plan), abs=0.01)
    assert [(bound.resource, bound.met) for bound in report.bounds] == [("latency", True), ("params", True)]
    assert "latency: median of alternating runs on clockwork, device=cpu, batch=1" in report.to_markdown()
    assert rf.Report.load(tmp_path / "out").latency == report.latency
    again = rf.realize(net, x, result.plan).report
    assert again.latency is None
    assert [(bound.resource, bound.met) for bound in again.bounds] == [("latency", None), ("params", True)]


def test_measurements_are_cached_for_the_next_budget(
    net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path
) -> None:
    first = rf.plan(net, x, budget="latency<=60%", cache=tmp_path, **CLOCK)
    asked = len(clock.layers)
    assert asked > 0
    assert rf.plan(net, x, budget="latency<=60%", cache=tmp_path, **CLOCK).decisions == first.decisions
    rf.plan(net, x, budget="latency<=80%", cache=tmp_path, **CLOCK)
    assert len(clock.layers) == asked


def test_sweeps_vary_the_latency(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    swept = rf.sweep(net, x, resource="latency", points=3, limits=(0.5, 0.8), **CLOCK)
    ratios = [ratio(net, x, point.plan) for point in swept.feasible if point.plan is not None]
    assert [round(r, 2) <= limit for r, limit in zip(ratios, (0.5, 0.65, 0.8), strict=True)] == [True] * 3


def test_the_planner_measures_no_time_without_a_target(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    planner = Planner(net, x, search_of({}), None, rf.Budget.parse("params<=50%"))
    assert planner.timer is None
    assert clock.models == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gauge": True}, ConfigError, "gauge=True cannot be combined with a target"),
        ({"target": "clockwork, batch=0"}, ConfigError, "batch must be"),
        ({"never_slower": 1}, ConfigError, "never_slower must be True or False"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    net: nn.Module, x: Tensor, clock: Clockwork, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rf.plan(net, x, budget="params<=60%", **{**CLOCK, **options})


@pytest.mark.parametrize("budget", ["latency<=80%, accuracy_drop<=90%", "accuracy_drop<=90%"])
def test_a_strategy_that_trains_is_refused(net: nn.Module, x: Tensor, clock: Clockwork, budget: str) -> None:
    data = [(torch.randn(8, 3, 8, 8), torch.arange(8))]
    with pytest.raises(ConfigError, match="strategy 'similarity' trains every model"):
        rf.compress(
            net, x, strategy="similarity", budget=budget, target="clockwork", calibration=data, evaluate=rf.top1(data),
            finetune=rf.FineTune(data=data, epochs=1),
        )  # fmt: skip
    assert clock.models == 0


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        (0.3, {"strategy": "prune", "methods": None}),
        (0.1, {"strategy": "norton", "methods": None}),
        (0.1, {"strategy": rf.CompressNAS(widths=(0.5,))}),
    ],
    ids=["prune", "norton", "joint"],
)
def test_strategies_that_remove_channels_meet_a_bound(
    net: nn.Module, x: Tensor, clock: Clockwork, limit: float, options: dict[str, Any]
) -> None:
    result = rf.compress(net, x, budget={"latency": limit}, calibration=[x], **{**CLOCK, **options})
    assert result.plan.narrowing
    assert all((group.width - len(group.removed)) % BLOCK == 0 for group in result.plan.narrowing)
    assert 0.5 * limit < ratio(net, x, result.plan) <= limit
    assert result.report.latency is not None
    assert [(bound.resource, bound.met) for bound in result.report.bounds] == [("latency", True)]


def test_the_predicted_time_is_that_of_the_narrow_layers(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    planner = Planner(net, x, search_of({"strategy": "prune", **CLOCK, "methods": None}), None, None)
    made = planner.plan(None)
    narrow = planner.pricing.narrowed(made.narrowing)
    before, after = planner.pricing.inventory, narrow.inventory
    saved = sum(before.costs[name].get(LATENCY) - cost.get(LATENCY) for name, cost in after.costs.items())
    assert saved > 0
    assert after.total.get(LATENCY) == before.total.get(LATENCY) - saved == planner.pricing.plan_cost(made).get(LATENCY)


def test_a_busy_machine_gives_no_plan(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    clock.noise = 0.95
    with pytest.raises(RankfoldError, match="too busy to tell"):
        rf.plan(net, x, budget="latency<=60%", **CLOCK)


def test_the_command_line_takes_targets(clock: Clockwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rankfold.cli import app

    file = tmp_path / "plan.json"
    app(
        ["plan", "lenet5_mnist5k", "--target", "clockwork, batch=2", "--budget", "latency<=70%", "--out", str(file)],
        standalone_mode=False,
    )
    assert Plan.load(file).provenance.search[LATENCY]["target"].startswith("clockwork, device=cpu, batch=2")
    app(["plan", "lenet5_mnist5k", "--target", "tensorrt", "--out", str(file)], standalone_mode=False)
    assert "unknown runtime 'tensorrt'" in capsys.readouterr().err
