"""The strategy ``similarity``: target layers, settings, the loop, the hybrid, bounds, resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rankfold as rf
from rankfold.candidates import outputs
from rankfold.cost.exploration import explore
from rankfold.errors import ConfigError, InfeasibleBudget, NoMatchingLayer, UnknownNameError
from rankfold.records import Budget, Plan
from rankfold.strategies import Handle, Problem, ladder
from rankfold.strategies.ladder import Ladders
from rankfold.testing import ModelCase, make_problem, model_zoo
from rankfold.workbench import SavedLoops

CNN = next(case for case in model_zoo() if case.id == "cnn")


class FakeBench:
    """A workbench whose models have the drops and similarities that a test says."""

    def __init__(self, drops: Sequence[float], similar: Callable[[int, str], float] = lambda _, __: 0.5) -> None:
        self.drops, self.similar = drops, similar
        self.plans: list[Plan] = []
        self.likes: list[Any] = []
        self.trainings = 0
        self.kept: Any = None
        self.saved: dict[str, Any] = {}

    def apply(self, plan: Plan, *, like: Any = None) -> Handle:
        self.plans.append(plan)
        self.likes.append(like)
        return Handle(len(self.plans))

    def finetune(self, model: Handle) -> None:
        self.trainings += 1

    def drop(self, model: Any) -> float:
        return self.drops[min(model, len(self.drops)) - 1]

    def evaluate(self, model: Any = None) -> float:
        return 0.9 - (0 if model is None else self.drop(model))

    def places(self, layers: Sequence[str]) -> dict[str, Any]:
        class Place:
            branched = False

        return dict.fromkeys(layers, Place)

    def similarity(self, model: Any, layers: Sequence[str], *, samples: int) -> dict[str, float]:
        return {name: self.similar(model, name) for name in layers}

    def keep(self, model: Handle, *, rounds: Sequence[Mapping[str, Any]] = ()) -> None:
        self.kept = model, rounds

    def remember(self, name: str, state: Mapping[str, Any], model: Handle) -> None:
        self.saved[name] = dict(state), model

    def recall(self, name: str) -> Any:
        return self.saved.get(name)


def problem_of(bench: FakeBench, budget: str | None = None, methods: tuple[str, ...] = ("tucker", "svd")) -> Problem:
    bounds = None if budget is None else Budget.parse(budget)
    return replace(make_problem(CNN, CNN.model(), budget=bounds), workbench=bench, methods=methods)  # pyright: ignore


def ranks(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {name: choice.ranks for name, choice in plan.factored.items()}


def test_the_first_model_has_rank_one_and_the_loop_ends_when_it_is_good_enough() -> None:
    bench = FakeBench([0.01])
    plan = rf.Similarity(coverage=1.0).plan(problem_of(bench))
    assert all(set(r) == {1} for r in ranks(plan).values())
    assert len(ranks(plan)) == len(make_problem(CNN, CNN.model()).inventory.compressible)
    assert (bench.trainings, bench.kept[0]) == (1, 1)
    problem = make_problem(CNN, CNN.model())
    amount = problem.pricing.plan_cost(plan).params
    run = {"label": "tucker+svd", "amount": amount, "drop": 0.01, "rounds": 1}
    assert plan.provenance.search == {"best": "tucker+svd", "drop": 0.01, "runs": [run]}


def test_layers_below_their_threshold_are_raised_and_the_others_stay() -> None:
    similar = {"conv2": 0.95, "pointwise": 0.5}
    bench = FakeBench([0.5, 0.4, 0.01], lambda _, name: similar.get(name, 0.93))
    plan = rf.Similarity(coverage=1.0).plan(problem_of(bench))
    first, _, last = (ranks(p) for p in bench.plans)
    assert {name for name in first if first[name] != last[name]} == {"pointwise"}
    assert ranks(plan) == last
    rounds = bench.kept[1]
    assert [r["number"] for r in rounds] == [1, 2, 3]
    assert [r["raised"] for r in rounds] == [["pointwise"], ["pointwise"], []]
    assert rounds[-1]["similarity"] == {}
    assert set(rounds[0]["similarity"]) == set(first)


def test_thresholds_of_single_layers() -> None:
    bench = FakeBench([0.5, 0.01], lambda *_: 0.9)
    rf.Similarity(coverage=1.0, threshold=0.8, thresholds={"conv2": 0.95}).plan(problem_of(bench))
    assert bench.kept[1][0]["raised"] == ["conv2"]
    with pytest.raises(NoMatchingLayer, match=r"no layer 'conv22'. Did you mean 'conv2'"):
        rf.Similarity(thresholds={"conv22": 0.95}).plan(problem_of(bench))


def test_the_least_similar_layer_is_raised_if_every_layer_has_reached_its_threshold() -> None:
    bench = FakeBench([0.5, 0.4, 0.01], lambda _, name: {"fc1": 0.97, "conv2": 0.98}.get(name, 0.99))
    rf.Similarity(coverage=1.0, thresholds={"conv2": 0.979}).plan(problem_of(bench))
    raised = [entry["raised"] for entry in bench.kept[1]]
    assert raised[0] == raised[1] == ["conv2"]  # 0.001 above its threshold, fc1 0.05


def test_the_loop_ends_even_if_nothing_helps() -> None:
    bench = FakeBench([0.5], lambda *_: 1.0)
    with pytest.raises(InfeasibleBudget, match=r"within 0.015: it is 0.5 with the mildest compression"):
        rf.Similarity(step_size=0.3, max_sol=1).plan(problem_of(bench))
    assert 2 < bench.trainings < 30


def test_values_are_carried_over_unless_told_otherwise() -> None:
    for carry, wanted in ((True, [None, 1, 2]), (False, [None, None, None])):
        bench = FakeBench([0.5, 0.4, 0.01])
        rf.Similarity(carry=carry).plan(problem_of(bench))
        assert bench.likes == wanted


def test_iterative_finetuning_factors_one_layer_after_the_other() -> None:
    bench = FakeBench([0.01])
    plan = rf.Similarity(coverage=1.0, one_shot=False).plan(problem_of(bench))
    assert [len(p.factored) for p in bench.plans] == list(range(1, len(plan.factored) + 1))
    assert bench.trainings == len(plan.factored)
    assert bench.likes == [None, *range(1, len(plan.factored))]


def test_a_bound_on_the_drop_replaces_the_default() -> None:
    bench = FakeBench([0.2, 0.1, 0.01])
    rf.Similarity().plan(problem_of(bench, "accuracy_drop<=10%"))
    assert bench.trainings == 2


def test_other_bounds_end_the_loop_with_the_last_model_within_them() -> None:
    bench = FakeBench([0.5, 0.4, 0.3, 0.2, 0.1] + [0.1] * 40)
    problem = problem_of(bench, "params<=50%")
    plan = rf.Similarity(coverage=1.0).plan(problem)
    total = problem.inventory.total
    assert problem.budget is not None
    assert not problem.budget.exceeded(problem.pricing.plan_cost(plan), total)
    assert ranks(plan) == ranks(bench.plans[-1])
    assert bench.kept[0] == len(bench.plans)


def test_bounds_that_cannot_be_met_together_are_refused() -> None:
    bench = FakeBench([0.5])
    with pytest.raises(InfeasibleBudget, match=r"The last model within the other bounds has a drop of 0.5"):
        rf.Similarity(coverage=1.0).plan(problem_of(bench, "params<=50%, accuracy_drop<=1%"))
    with pytest.raises(InfeasibleBudget) as caught:
        rf.Similarity().plan(problem_of(FakeBench([0.5]), "params<=2%"))
    assert caught.value.rows[0][0] == "params"


@pytest.mark.parametrize("of", ["layers", "objective"])
def test_small_layers_are_kept(of: str) -> None:
    bench = FakeBench([0.01])
    problem = problem_of(bench)
    plan = rf.Similarity(coverage=0.6, coverage_of=of).plan(problem)  # pyright: ignore[reportArgumentType]
    costs = {layer.name: problem.inventory.costs[layer.name].params for layer in problem.inventory.compressible}
    kept = [name for name in costs if name not in plan.factored]
    assert kept
    assert max(costs[name] for name in kept) <= min(costs[name] for name in plan.factored)
    assert all("coverage=0.6" in str(plan.layers[name].reason) for name in kept)
    if of == "layers":
        assert len(plan.factored) == int(0.6 * len(costs))
    else:
        held = sorted((costs[name] for name in plan.factored), reverse=True)
        assert sum(held[:-1]) < 0.6 * sum(costs.values()) <= sum(held)


def test_the_hybrid_takes_the_cheapest_setting_of_each_layer() -> None:
    bench = FakeBench([0.01])
    problem = problem_of(bench, methods=("tucker", "tt", "svd", "qr"))
    plan = rf.Similarity(coverage=1.0).plan(problem)
    runs = plan.provenance.search["runs"]
    assert [run["label"] for run in runs] == ["tucker+svd", "tucker+qr", "tt+svd", "tt+qr", "hybrid"]
    assert plan.provenance.search["best"] == "hybrid"
    assert runs[-1]["amount"] <= min(run["amount"] for run in runs)
    amounts = [problem.pricing.layer_costs(p) for p in bench.plans[:4]]
    for name, cost in problem.pricing.layer_costs(plan).items():
        assert cost.params == min(costs[name].params for costs in amounts)


def test_a_hybrid_that_is_not_good_enough_is_trained_once_more_and_then_the_best_pair_is_returned() -> None:
    bench = FakeBench([0.01, 0.01, 0.5])
    plan = rf.Similarity(coverage=1.0).plan(problem_of(bench, methods=("tucker", "tt", "svd")))
    assert plan.provenance.search["best"] != "hybrid"
    assert plan.provenance.search["runs"][-1]["drop"] == 0.5
    assert bench.trainings >= 4
    assert bench.kept[0] in (1, 2)


class WithoutTT(FakeBench):
    """Models with a tensor train are never good enough."""

    def drop(self, model: Any) -> float:
        return 0.5 if any(choice.method == "tt" for choice in self.plans[model - 1].factored.values()) else 0.01


def test_pairs_that_cannot_meet_the_budget_are_left_out() -> None:
    bench = WithoutTT([])
    search = rf.Similarity(coverage=1.0, step_size=0.5).plan(problem_of(bench, methods=("tt", "tucker", "svd", "qr")))
    runs = search.provenance.search["runs"]
    assert [run["label"] for run in runs] == ["tucker+svd", "tucker+qr", "hybrid"]
    assert search.provenance.search["failed"] == ["tt+svd", "tt+qr"]
    with pytest.raises(InfeasibleBudget, match=r"it is 0.5 with the mildest compression"):
        rf.Similarity(coverage=1.0, step_size=0.5).plan(problem_of(WithoutTT([]), methods=("tt",)))


class WithoutHybrid(FakeBench):
    """The third model, which is the hybrid, cannot meet a bound."""

    def apply(self, plan: Plan, *, like: Any = None) -> Handle:
        if len(self.plans) == 2:
            raise InfeasibleBudget("too many MACs")
        return super().apply(plan, like=like)


def test_a_hybrid_that_cannot_meet_the_budget_is_left_out() -> None:
    bench = WithoutHybrid([0.01])
    search = rf.Similarity(coverage=1.0).plan(problem_of(bench, methods=("tucker", "tt", "svd"))).provenance.search
    assert [run["label"] for run in search["runs"]] == ["tucker+svd", "tt+svd"]
    assert search["failed"] == ["hybrid"]
    assert bench.kept[0] in (1, 2)


def test_pairs_that_are_the_same_run_once() -> None:
    bench = FakeBench([0.01])
    problem = problem_of(bench, methods=("tucker", "tt", "svd", "qr"))
    only = replace(
        problem, fixed={layer.name: problem.table().rows[layer.name][0] for layer in problem.inventory.compressible
                        if layer.kernel_numel == 1 and layer.name in problem.table().rows}
    )  # fmt: skip
    runs = rf.Similarity(coverage=1.0).plan(only).provenance.search["runs"]
    assert [run["label"] for run in runs] == ["tucker+svd", "tt+svd", "hybrid"]


def problem_on(model: nn.Module, *shape: int, budget: str | None = None) -> Problem:
    """Return the problem of another model, whose compressed forms are good enough at once."""
    case = ModelCase(id="other", build=lambda: model, input_shape=shape)
    posed = make_problem(case, model, budget=None if budget is None else Budget.parse(budget))
    bench: Any = FakeBench([0.01])
    return replace(posed, workbench=bench, methods=("tucker", "tt", "svd", "qr"))


def test_layers_that_have_no_smaller_form_are_kept() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 2)).eval()
    plan = rf.Similarity(coverage=1.0).plan(problem_on(model, 1, 16))
    assert set(plan.factored) == {"0", "2"}
    assert [run["label"] for run in plan.provenance.search["runs"]] == ["tucker+svd", "tucker+qr", "hybrid"]
    tiny = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    assert not rf.Similarity().plan(problem_on(tiny, 1, 2)).factored
    with pytest.raises(InfeasibleBudget, match="no target layer has a setting that is smaller"):
        rf.Similarity().plan(problem_on(tiny, 1, 2, budget="params<=50%"))


class Idle(nn.Module):
    """Positive inputs take one layer, negative ones the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.positive, self.negative = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.positive(x) if x.mean() > 0 else self.negative(x))


def test_layers_without_calls_are_kept() -> None:
    data, model = [X[:8, 0, 0].abs(), -X[:8, 0, 0].abs()], Idle().eval()
    result = rf.compress(
        model, data[1][:1], calibration=data, evaluate=lambda _: 0.5, strategy=rf.Similarity(coverage=1.0),
        finetune=rf.FineTune(data=data, epochs=1),
    )  # fmt: skip
    assert set(result.plan.factored) == {"first"}
    assert result.plan.layers["positive"].reason == "the example input does not reach it"
    assert result.plan.layers["negative"].reason == "the first calibration samples do not reach it"


def test_layers_of_equal_shape_share_their_exploration(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Conv2d(12, 12, 3, padding=1) for _ in range(4)), nn.Conv2d(12, 16, 3)).eval()
    explored: list[str] = []
    monkeypatch.setattr(
        ladder, "explore", lambda layer, *a, **k: explored.append(layer.name) or explore(layer, *a, **k)
    )
    plan = rf.Similarity(coverage=1.0).plan(replace(problem_on(model, 1, 12, 8, 8), methods=("tt",)))
    assert len(plan.factored) == 5
    assert set(explored) == {"4", "0"}


@pytest.mark.parametrize("method", ["tucker", "tt", "svd", "ttm", "cp"])
@pytest.mark.parametrize("max_sol", [1, 3, 10])
def test_settings_go_from_rank_one_to_mild_compression_in_steps(method: str, max_sol: int) -> None:
    torch.manual_seed(0)
    kernel = method in ("tucker", "tt", "cp")
    model = nn.Sequential(nn.Conv2d(24, 32, 3)) if kernel else nn.Sequential(nn.Linear(96, 64))
    x = torch.randn(1, 24, 6, 6) if kernel else torch.randn(1, 96)
    problem = make_problem(ModelCase(id="one", build=lambda: model, input_shape=tuple(x.shape)), model)
    layer = problem.inventory.layer("0")
    rungs = Ladders(problem=problem, objective="params", step_size=0.1, max_sol=max_sol).of(layer, method)
    dense = problem.inventory.costs["0"].params
    gone = [1 - c.cost.params / dense for c in rungs]
    assert set(rungs[0].ranks) == {1}
    assert all(gone[0] >= g > 0 for g in gone)
    steps = [round((gone[0] - g) / 0.1) for g in gone]
    assert steps == sorted(steps)
    assert max(steps.count(s) for s in steps) <= max(1, max_sol if len(rungs[0].ranks) > 1 else 1)
    assert len({(c.ranks, str(c.options)) for c in rungs}) == len(rungs)
    assert all(0 <= c.error <= 1 for c in rungs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coverage": 0}, "coverage must be"),
        ({"drop": 1}, "drop must be"),
        ({"threshold": 2}, "threshold must be"),
        ({"thresholds": {"fc": 7}}, "fc must be"),
        ({"thresholds": 3}, "thresholds must be"),
        ({"step_size": 0.001}, "step_size must be"),
        ({"max_sol": 0}, "max_sol must be"),
        ({"samples": 1.5}, "samples must be"),
        ({"carry": "yes"}, "carry must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rf.Similarity(**options)


def test_bad_names() -> None:
    with pytest.raises(UnknownNameError, match="objective"):
        rf.Similarity(objective="latency")  # pyright: ignore[reportArgumentType]


X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(12 * 16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        return self.fc2(torch.relu(self.fc1(torch.relu(x + self.conv2(x)).flatten(1))))


DROP = 0.2


def run(cache: Path | None, metric: Callable[[nn.Module], float] | None = None, **options: Any) -> rf.Result:
    model = Net().eval()
    data = [X[:32], X[32:]]
    return rf.compress(
        model, X[:1], calibration=[X[:40], X[40:]], evaluate=metric or rf.evaluation.output_error(model, [X]),
        finetune=rf.FineTune(data=data, epochs=5, lr=0.05, distill="mse", loss="distill"),
        strategy=rf.Similarity(drop=DROP, step_size=0.1, max_sol=2, coverage=1.0, **options), cache=cache,
    )  # fmt: skip


def outcome(result: rf.Result) -> tuple[Any, ...]:
    rounds = [replace(row, seconds={}) for row in result.report.rounds]
    state = {name: tensor.tolist() for name, tensor in result.model.state_dict().items()}
    return result.plan.layers, result.plan.provenance.search, rounds, state, result.report.layers, result.report.notes


@pytest.fixture(scope="module")
def uninterrupted() -> rf.Result:
    return run(None)


def test_the_result_is_the_trained_model_and_the_report_has_the_rounds(uninterrupted: rf.Result) -> None:
    rounds, (metric,) = uninterrupted.report.rounds, uninterrupted.report.metrics
    assert len(rounds) > 2
    assert rounds[-1].drop <= DROP < rounds[0].drop
    assert metric.tuned == metric.reloaded == pytest.approx(rounds[-1].metric)
    assert rounds[0].raised
    assert set(rounds[0].seconds) == {"apply", "finetune", "evaluate", "compare"}
    assert uninterrupted.report.after.params == rounds[-1].amount
    layers = {row.name: (row.after.params, row.after.macs) for row in uninterrupted.report.factored}
    assert rounds[-1].costs == layers
    assert not any(row.costs for row in rounds[:-1])
    text = uninterrupted.report.to_markdown()
    assert "least similar layer" in text
    again = rf.reporting.Report.from_json(uninterrupted.report.to_json(), source="it")
    assert again.rounds == rounds


def test_a_bound_on_ram_holds_and_ends_the_loop() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.Flatten(), nn.Linear(384, 4)).eval()
    options: dict[str, Any] = {
        "calibration": [X], "finetune": rf.FineTune(data=[X], loss="distill", distill="mse", epochs=1),
        "evaluate": rf.evaluation.output_error(model, [X]), "strategy": rf.Similarity(drop=0, step_size=0.3),
    }  # fmt: skip
    result = rf.compress(model, X[:1], budget="ram<=90%", **options)
    assert "2" in result.plan.factored
    assert len(result.report.rounds) > 1
    with pytest.raises(InfeasibleBudget, match=r"The last model within the other bounds has a drop of"):
        rf.compress(model, X[:1], budget="ram<=90%, accuracy_drop<=0%", **options)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [2, 3])
def test_an_interrupted_loop_resumes_to_the_same_result(
    after: int, tmp_path: Path, uninterrupted: rf.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = SavedLoops.write

    def interrupted(self: SavedLoops, *args: Any) -> None:
        write(self, *args)
        written.append(args[0])
        if len(written) == after:
            raise Killed

    monkeypatch.setattr(SavedLoops, "write", interrupted)
    with pytest.raises(Killed):
        run(tmp_path)
    resumed = run(tmp_path)
    assert outcome(resumed) == outcome(uninterrupted)
    assert len(written) == len(uninterrupted.report.rounds)


def test_a_loop_with_other_settings_starts_over() -> None:
    bench = FakeBench([0.5, 0.4, 0.01])
    rf.Similarity().plan(problem_of(bench))
    state, model = bench.saved["tucker+svd"]
    again = FakeBench([0.5, 0.4, 0.01])
    again.saved["tucker+svd"] = state, model
    rf.Similarity().plan(problem_of(again))
    assert again.trainings == 0  # the loop had ended
    rounds = [{**entry, "settings": {**entry["settings"], "conv2": "tucker 9, 9"}} for entry in state["rounds"]]
    again.saved["tucker+svd"] = {**state, "rounds": rounds}, model
    rf.Similarity().plan(problem_of(again))
    assert again.trainings == 3


def test_another_search_does_not_resume_from_it(tmp_path: Path) -> None:
    first = run(tmp_path)
    files = sorted(tmp_path.glob("loop-*"))
    assert len(files) == 1
    assert outcome(run(tmp_path)) == outcome(first)
    assert sorted(tmp_path.glob("loop-*")) == files
    other = run(tmp_path, carry=False)
    assert len(sorted(tmp_path.glob("loop-*"))) == 2
    assert outcome(other) != outcome(first)


@pytest.mark.parametrize(("factor", "resumes"), [(1 + 1e-6, True), (1.01, False)])
def test_a_loop_resumes_where_outputs_are_rounded_differently(
    factor: float, resumes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine computes the original's outputs to other last digits; another network differs by more."""
    run(tmp_path)
    exact = outputs.compared
    monkeypatch.setattr(outputs, "compared", lambda *args: [out * factor for out in exact(*args)])
    written: list[str] = []
    monkeypatch.setattr(SavedLoops, "write", lambda _, name, *args: written.append(name))
    run(tmp_path)
    assert (written == []) is resumes


def test_a_damaged_file_starts_over(tmp_path: Path, uninterrupted: rf.Result) -> None:
    run(tmp_path)
    (file,) = tmp_path.glob("loop-*")
    file.write_bytes(file.read_bytes()[:-100])
    assert outcome(run(tmp_path)) == outcome(uninterrupted)


def test_it_needs_data_a_metric_and_a_recipe() -> None:
    model = Net().eval()
    with pytest.raises(ConfigError, match="needs calibration data"):
        rf.compress(model, X[:1], strategy="similarity")
    with pytest.raises(ConfigError, match="needs a metric"):
        rf.compress(model, X[:1], strategy="similarity", calibration=[X])
    with pytest.raises(ConfigError, match="needs a recipe"):
        rf.compress(model, X[:1], strategy="similarity", calibration=[X], evaluate=lambda _: 0.5)


def test_data_that_draws_random_numbers_does_not_disturb_torchs_random_state() -> None:
    model, state = Net().eval(), torch.get_rng_state()
    rows = [(x, torch.tensor(0)) for x in X]
    shuffled = DataLoader(rows, batch_size=16, shuffle=True)  # pyright: ignore[reportArgumentType]
    rf.compress(
        model, X[:1], calibration=shuffled, evaluate=rf.evaluation.output_error(model, [X]),
        finetune=rf.FineTune(data=shuffled, epochs=1, loss="distill", distill="mse"),
        strategy=rf.Similarity(step_size=0.5, max_sol=1, drop=0.27),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
