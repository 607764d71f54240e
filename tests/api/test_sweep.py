"""`sweep`: one table for every budget, each plan as a fresh search makes it, fronts, families, and going on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.api import family
from rankfold.candidates import Estimator
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, UnknownNameError
from rankfold.records import Budget
from rankfold.reporting import MetricValue
from rankfold.reporting.sweep import SweepPoint
from rankfold.surgery import plan_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 20),
        nn.Linear(20, 5),
    ).eval()


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(count)
    ]


class Distance:
    """A metric that counts how often it is asked: minus the distance from the original's output."""

    name = "closeness"
    higher_is_better = True

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.reference = cnn()

    def __call__(self, model: nn.Module) -> float:
        self.models.append(model)
        return -float((model(X) - self.reference(X)).square().sum())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of candidates of each measurement of a layer."""
    counts: list[int] = []
    measure = Estimator._run

    def counted(self: Estimator, proxy: Any, name: str, candidates: Any, key: Any) -> list[float]:
        counts.append(len(candidates))
        return measure(self, proxy, name, candidates, key)

    monkeypatch.setattr(Estimator, "_run", counted)
    return counts


@pytest.mark.parametrize("rounds", [0, 1])
def test_every_plan_is_what_a_fresh_search_returns(rounds: int) -> None:
    strategy = rf.CompressNAS(rounds=rounds, points=4)
    found = rf.sweep(cnn(), X, points=20 if rounds == 0 else 6, calibration=batches(), strategy=strategy)
    assert len(found.points) == len(found.feasible) == (20 if rounds == 0 else 6)
    for point in found.points[:: 9 if rounds == 0 else 4]:
        fresh = rf.plan(cnn(), X, budget=point.budget, calibration=batches(), strategy=strategy)
        assert fresh == point.plan
    assert found.points[0].plan != found.points[-1].plan


def test_twenty_points_from_one_table(alone: list[int]) -> None:
    search = {"calibration": batches(), "strategy": rf.CompressNAS(rivals=())}  # plans are not compared
    found = rf.sweep(cnn(), X, points=20, **search)
    assert len(found.feasible) == 20
    assert len(alone) == 2 * 4  # once a layer by gradients, once measured
    assert found.measured == sum(alone)
    del alone[:]
    for point in found.points[:3]:  # the negative control: three searches
        rf.plan(cnn(), X, budget=point.budget, **search)
    assert len(alone) == 3 * 2 * 4


def test_points_of_several_proxies_have_measured_losses() -> None:
    found = rf.sweep(cnn(), X, points=5, calibration=batches())
    for point in found.points:
        search = point.plan.provenance.search
        assert point.predicted_loss == search["compared"][search["proxy"]] == min(search["compared"].values())


@pytest.mark.parametrize("resource", ["params", "macs", "flash", "memory"])
@pytest.mark.parametrize("data", [True, False])
def test_a_larger_budget_damages_less_and_none_is_exceeded(resource: str, data: bool) -> None:
    strategy, calibration = rf.CompressNAS(rivals=()), batches() if data else None
    found = rf.sweep(cnn(), X, resource=resource, points=20, calibration=calibration, strategy=strategy)
    damages = [point.predicted_loss for point in found.points]
    assert None not in damages
    assert damages == sorted(damages, reverse=True)
    assert len(set(damages)) > 10
    for point in found.points:
        assert not Budget.parse(point.budget).exceeded(point.cost, found.dense)
    shares = [found.share(point) for point in found.points]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < 0.85 < shares[-1] < 1


@pytest.mark.parametrize("storage", [None, "int8", "float16"])
def test_bytes_are_those_of_the_storage_data_type(storage: str | None) -> None:
    found = rf.sweep(cnn(), X, resource="flash", points=4, deploy_dtype=storage)
    for point in found.points:
        assert point.plan == rf.plan(cnn(), X, budget=point.budget, deploy_dtype=storage)
        assert not Budget.parse(point.budget).exceeded(point.cost, found.dense)
        report = rf.compress(cnn(), X, budget=point.budget, deploy_dtype=storage).report
        assert (report.before, report.after) == (found.dense, point.cost)


@pytest.mark.parametrize("gauge", [False, True])
def test_costs_are_those_of_the_built_models(tmp_path: Path, gauge: bool) -> None:
    found = rf.sweep(cnn(), X, points=3, output=tmp_path / "models", budget="macs<=90%", gauge=gauge)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == sorted(
        family.folder_name(point.budget) for point in found.points
    )
    for point in found.points:
        assert point.folder is not None
        model = rf.load(point.folder, cnn())
        built = rf.inspect(model, X).total
        if gauge:  # whose small layers' feature maps an inspection does not see
            assert replace(built, fm=0) == replace(point.cost, fm=0)
        else:
            assert built == point.cost
        assert plan_of(model).layers == point.plan.layers
        assert point.metric is None


def test_the_range_can_be_chosen() -> None:
    found = rf.sweep(cnn(), X, points=3, limits=(0.3, 0.7))
    assert [point.budget for point in found.points] == ["params<=30%", "params<=50%", "params<=70%"]
    close = rf.sweep(cnn(), X, points=3, limits=(0.3, 0.3001))
    assert len({point.budget for point in close.points}) == 3
    listed = rf.sweep(cnn(), X, points=["params<=50%", {"macs": 0.4}, Budget.parse("params/3")], budget="macs<=95%")
    assert [point.budget for point in listed.points] == [
        "params<=50%, macs<=95%", "macs<=40%, macs<=95%", "params/3, macs<=95%",
    ]  # fmt: skip


def test_budgets_without_a_plan_are_listed_with_the_reason() -> None:
    found = rf.sweep(cnn(), X, points=["params<=1%", "params<=50%", "params<=100%"])
    low, middle, all_of_it = found.points
    assert low == SweepPoint(budget="params<=1%", reason=low.reason)
    assert "cannot be met" in low.reason
    assert middle.reason == ""
    assert all_of_it.plan is None
    assert "already meets budget" in all_of_it.reason
    assert found.feasible == (middle,)
    with pytest.raises(InfeasibleBudget, match=r"none of the 2 budgets.*macs<=1%"):
        rf.sweep(cnn(), X, points=["params<=20%", "params<=30%"], budget="macs<=1%")


def test_no_candidate_writes_less() -> None:
    with pytest.raises(InfeasibleBudget, match="nothing to sweep"):
        rf.sweep(nn.Linear(8, 8), torch.randn(1, 8), resource="fm")


@pytest.mark.parametrize("strategy", ["uniform", "energy"])
def test_other_strategies(strategy: str) -> None:
    found = rf.sweep(cnn(), X, points=5, strategy=strategy, limits=(0.4, 0.9))
    assert found.strategy == strategy
    for point in found.points:
        assert point.plan == rf.plan(cnn(), X, budget=point.budget, strategy=strategy)
        errors = [choice.error or 0.0 for choice in point.plan.factored.values()]
        assert point.predicted_loss == pytest.approx(sum(e**2 for e in errors))
    best = rf.sweep(cnn(), X, points=5, limits=(0.4, 0.9))
    pairs = zip(best.points, found.points, strict=True)
    assert all((b.predicted_loss or 0.0) <= (p.predicted_loss or 0.0) for b, p in pairs)


def test_the_front_is_what_no_point_beats() -> None:
    found = rf.sweep(cnn(), X, points=8, strategy="uniform", limits=(0.3, 0.9))
    worse = replace(found.points[2], budget="other", predicted_loss=1e6)
    twin = replace(found.points[3], budget="twin")
    mixed = replace(found, points=(worse, *found.points, twin))

    def beaten(point: Any) -> bool:
        mine = (mixed.amount(point), point.predicted_loss)
        others = [(mixed.amount(p), p.predicted_loss) for p in mixed.feasible]
        return any(o != mine and o[0] <= mine[0] and o[1] <= mine[1] for o in others)

    front = mixed.front()
    assert not any(beaten(point) for point in front)
    assert {p.budget for p in mixed.feasible if not beaten(p)} - {p.budget for p in front} <= {"twin"}
    assert worse not in front
    amounts = [mixed.amount(point) for point in front]
    assert amounts == sorted(set(amounts))


def test_the_best_stored_plan_for_a_budget() -> None:
    found = rf.sweep(cnn(), X, points=6, limits=(0.3, 0.8))
    assert found.plan("params<=52%") == found.points[2].plan
    assert found.plan({"params": 0.3}) == found.points[0].plan
    assert found.plan("params<=99%, macs<=99%") == found.points[-1].plan
    tight = f"macs<={found.points[1].cost.macs / 1000}k"
    assert found.plan(tight) == found.points[1].plan
    with pytest.raises(InfeasibleBudget, match=r"no plan of the sweep.*\n.*\n +params"):
        found.plan("params<=10%")
    with pytest.raises(BudgetError, match="ram, which a sweep does not count"):
        found.plan("ram<=10k, params<=50%")


def test_models_are_measured_one_at_a_time() -> None:
    metric = Distance()
    found = rf.sweep(cnn(), X, points=6, calibration=batches(), evaluate=metric, evaluate_points=3)
    assert [point.metric is not None for point in found.points] == [True, False, True, False, False, True]
    assert len(metric.models) == 4  # the original and three
    assert found.metric == MetricValue(name="closeness", dense=0.0)
    for point in (found.points[0], found.points[5]):
        assert point.metric == rf.evaluate(rf.apply(cnn(), point.plan, batches()), Distance())
    assert (found.points[0].metric or 0.0) < (found.points[5].metric or 0.0) < 0


def test_reconstruction_is_the_callers() -> None:
    values = set()
    for how in ("weights", "data", "sequential"):
        found = rf.sweep(cnn(), X, points=["params<=30%"], calibration=batches(), evaluate=Distance(), reconstruct=how)
        small = rf.apply(cnn(), found.points[0].plan, batches(), reconstruct=how)
        assert found.points[0].metric == rf.evaluate(small, Distance())
        values.add(found.points[0].metric)
    assert len(values) == 3


def test_budgets_that_share_a_plan_are_measured_once() -> None:
    metric = Distance()
    found = rf.sweep(cnn(), X, points=["params<=90%", "params<=95%"], budget="params<=50%", evaluate=metric)
    assert found.points[0].plan.layers == found.points[1].plan.layers
    assert found.points[0].metric == found.points[1].metric
    assert len(metric.models) == 2


def test_a_killed_sweep_goes_on(tmp_path: Path, alone: list[int]) -> None:
    whole = rf.sweep(cnn(), X, points=4, calibration=batches(), evaluate=Distance())

    class Killed(Distance):
        def __call__(self, model: nn.Module) -> float:
            if len(self.models) == 3:
                raise KeyboardInterrupt
            return super().__call__(model)

    options: dict[str, Any] = {"points": 4, "calibration": batches(), "cache": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        rf.sweep(cnn(), X, **options, evaluate=Killed())
    metric = Distance()
    again = rf.sweep(cnn(), X, **options, evaluate=metric)
    assert again.measured == 0
    assert len(metric.models) == 3  # the original, and the two that were not reached
    assert again.points == whole.points

    def fresh(**changed: Any) -> int:
        other = Distance()
        rf.sweep(changed.pop("model", cnn()), X, **(options | changed), evaluate=other)
        return len(other.models)

    assert fresh() == 1
    assert fresh(reconstruct="weights") == 5  # what changes the metric is not taken from the cache
    assert fresh(calibration=batches(3)) == 5
    changed = cnn()
    changed[7].weight.data.mul_(1.5)
    assert fresh(model=changed) == 5


def test_metrics_of_other_data_are_not_mixed_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {"points": ["params<=30%"], "cache": tmp_path}
    values = []
    for count in (0, 1):
        inputs = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(count))
        metric = rf.agreement(cnn(), [inputs])  # of the original it is 1, whatever the data
        values.append(rf.sweep(cnn(), X, **options, evaluate=metric).points[0].metric)
        small = rf.apply(cnn(), rf.plan(cnn(), X, budget="params<=30%"))
        assert values[-1] == rf.evaluate(small, metric)
    assert values[0] != values[1]


def test_the_model_and_the_random_state_stay_as_they_are(tmp_path: Path) -> None:
    net = cnn()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    loader = torch.utils.data.DataLoader([(x, y) for x, y in zip(*batches()[0], strict=True)], batch_size=4)
    rf.sweep(
        net, X, points=2, calibration=batches(), evaluate=rf.top1(loader), cache=tmp_path / "c", output=tmp_path / "o"
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "resource": ({"resource": "parms"}, UnknownNameError, "Did you mean 'params'"),
    "one point": ({"points": 1}, ConfigError, "points must be an integer from 2 to 1,000"),
    "limits": ({"limits": (0.8, 0.2)}, ConfigError, "two increasing shares"),
    "one limit": ({"limits": (0.8,)}, ConfigError, "two increasing shares"),
    "no budgets": ({"points": []}, ConfigError, "a list of budgets"),
    "budgets as text": ({"points": "params<=5%"}, ConfigError, "a list of budgets"),
    "accuracy": ({"budget": "accuracy_drop<=1%"}, BudgetError, "compress with evaluate"),
    "accuracy of a point": ({"points": ["accuracy_drop<=1%"]}, BudgetError, "compress with evaluate"),
    "points without metric": ({"evaluate_points": 3}, ConfigError, "needs a metric"),
    "no point": ({"evaluate_points": 0, "evaluate": Distance()}, ConfigError, "evaluate_points must be"),
    "sequential": ({"reconstruct": "sequential"}, ConfigError, "needs calibration data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr("rankfold.api.planning.inspect", work)
    options, kind, message = BAD[name]
    sweep: Callable[..., Any] = rf.sweep
    with pytest.raises(kind, match=message):
        sweep(cnn(), X, **options, output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(rf.RankfoldError, match="file"):
        rf.sweep(cnn(), X, points=2, output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
