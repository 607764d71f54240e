"""Bounds on the accuracy: the smallest model that keeps it, by few measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.api.planning import Planner
from rankfold.api.realizing import Draft
from rankfold.api.searching import MOST, smallest_within
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.evaluation import as_metric
from rankfold.records import Budget, Plan
from rankfold.workbench import SavedLoops

X = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def planner(model: nn.Module) -> Planner:
    return Planner(model, X, rf.Search(), None)


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class BySize:
    """A metric that falls evenly with the parameters: 0.9 of the original, 0.4 of nothing."""

    name = "score"
    higher_is_better = True

    def __init__(self) -> None:
        self.dense = params(net())
        self.asked: list[int] = []

    def value(self, size: int) -> float:
        return 0.4 + 0.5 * size / self.dense

    def __call__(self, model: nn.Module) -> float:
        self.asked.append(params(model))
        return self.value(params(model))


class Loss(BySize):
    """The same, lower is better."""

    higher_is_better = False

    def value(self, size: int) -> float:
        return 1 - super().value(size)


def loader() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 32, generator=generator)
    return [(x, net()(x).argmax(1))]


@pytest.mark.parametrize("metric", [BySize, Loss])
@pytest.mark.parametrize("drop", [0.05, 0.2, 0.3])
def test_the_smallest_model_that_keeps_the_metric(metric: type[BySize], drop: float) -> None:
    measure = metric()
    result = rf.compress(net(), X, budget=f"accuracy_drop<={drop}", evaluate=measure)
    (found,) = result.report.metrics
    lost = abs(found.final - found.dense)
    assert drop - 0.01 <= lost <= drop + 1e-9  # 0.01 of the metric is 2 % of the parameters
    assert len(measure.asked) <= 1 + MOST + 1  # the original, the trials, the loaded model
    assert params(result.model) == measure.asked[-1] == result.report.after.params
    (bound,) = result.report.bounds
    assert bound.met
    assert (bound.resource, bound.limit) == ("accuracy_drop", drop)
    assert bound.value == pytest.approx(lost)
    assert f"{bound.value:.4g} of at most {drop:.4g}" in result.report.to_markdown()


def test_the_report_lists_every_trial() -> None:
    measure = BySize()
    notes = rf.compress(net(), X, budget="accuracy_drop<=20%", evaluate=measure).report.notes
    (first,) = [note for note in notes if note.startswith("accuracy_drop<=20%: params<=")]
    tried = [note for note in notes if note.startswith("tried params<=")]
    assert f"of {len(tried)} tried" in first
    assert len(tried) == len(measure.asked) - 2
    for note, size in zip(tried, measure.asked[1:-1], strict=True):
        assert f"score {measure.value(size):.4g}" in note
        assert f"{0.9 - measure.value(size):.4g} worse" in note


def test_the_result_equals_that_of_its_budget() -> None:
    result = rf.compress(net(), X, budget="accuracy_drop<=20%", evaluate=BySize())
    again = rf.compress(net(), X, budget=result.plan.provenance.budget, evaluate=BySize())
    assert again.plan == result.plan
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), result.model.parameters(), strict=True))


def test_other_bounds_hold_and_say_what_is_small() -> None:
    measure = BySize()
    budget = "accuracy_drop<=20%, macs<=70%, flash<=80%"
    result = rf.compress(net(), X, budget=budget, evaluate=measure)
    assert all(bound.met for bound in result.report.bounds)
    tried = [note for note in result.report.notes if note.startswith("tried ")]
    assert all("macs<=" in note and "flash<=80%" in note for note in tried)
    assert (result.plan.provenance.budget or "").startswith("macs<=")
    tighter = rf.compress(net(), X, budget="accuracy_drop<=20%, params<=30%, macs<=99%", evaluate=Constant(0.5))
    assert tighter.report.after.params <= 0.3 * tighter.report.before.params


class Constant:
    """A metric that compression does not change."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, model: nn.Module) -> float:
        return self.value


def test_what_costs_nothing_goes_down_to_the_least() -> None:
    result = rf.compress(net(), X, budget="accuracy_drop<=0%", evaluate=Constant(0.5))
    least = planner(net()).problem.table().least("params")
    assert result.report.after.params <= least + 0.02 * result.report.before.params


def test_the_mildest_compression_may_already_cost_too_much() -> None:
    class Spoilt(BySize):
        def __call__(self, model: nn.Module) -> float:
            self.asked.append(params(model))
            return 0.9 if params(model) == self.dense else 0.1

    measure = Spoilt()
    with pytest.raises(InfeasibleBudget) as caught:
        rf.compress(net(), X, budget="accuracy_drop<=10%", evaluate=measure)
    message = str(caught.value)
    for part in ("accuracy_drop<=10%", "mildest", "score is 0.1 against 0.9", "0.8 worse", "sequential", "finetune"):
        assert part in message
    assert len(measure.asked) <= 1 + MOST
    assert measure.asked[-1] == max(measure.asked[1:])


def test_bounds_that_cannot_be_met_are_found_out_before_anything_is_measured() -> None:
    measure = BySize()
    with pytest.raises(InfeasibleBudget, match="macs"):
        rf.compress(net(), X, budget="accuracy_drop<=10%, macs<=0.1%", evaluate=measure)
    assert len(measure.asked) == 1  # the original


def test_budgets_that_only_together_cannot_be_met_count_as_too_tight() -> None:
    def attempt(plan: Plan) -> Draft:
        return Draft(model=nn.Identity(), errors={}, values={"compressed": 1.0})

    problem = planner(net())
    plan = problem.plan

    def refuse(budget: Budget) -> Plan:
        if budget.bounds[0].value < 0.6:
            raise InfeasibleBudget("too tight")
        return plan(budget)

    problem.plan = refuse
    found = smallest_within(problem, Budget.parse("accuracy_drop<=1%"), attempt, dense=1.0, metric=as_metric(BySize()))
    share = Budget.parse(found.chosen.budget).bounds[0].value
    assert 0.6 <= share <= 0.62


def test_a_plan_is_measured_once() -> None:
    problem = planner(net())
    one = problem.plan(Budget.parse("params<=50%"))
    problem.plan = lambda budget: one
    attempts: list[Plan] = []

    def attempt(plan: Plan) -> Draft:
        attempts.append(plan)
        return Draft(model=nn.Identity(), errors={}, values={"compressed": 0.9})

    found = smallest_within(problem, Budget.parse("accuracy_drop<=20%"), attempt, dense=1.0, metric=as_metric(BySize()))
    assert len(attempts) == len(found.trials) == 1
    del attempts[:]
    with pytest.raises(InfeasibleBudget, match=r"0\.9 against 1"):
        smallest_within(problem, Budget.parse("accuracy_drop<=5%"), attempt, dense=1.0, metric=as_metric(BySize()))
    assert len(attempts) == 1


def test_with_a_recipe_the_metric_after_training_counts(tmp_path: Path) -> None:
    data = loader()
    recipe = rf.FineTune(
        data=data, epochs=25, optimizer="adamw", lr=3e-3, loss="task", checkpoint=tmp_path / "run" / "c.pt"
    )
    metric = rf.top1(data)
    budget = "accuracy_drop<=30%"
    untrained = rf.compress(net(), X, budget=budget, evaluate=metric)
    result = rf.compress(net(), X, budget=budget, evaluate=metric, finetune=recipe)
    (found,) = result.report.metrics
    assert found.tuned is not None
    assert found.dense - found.tuned <= 0.3 + 1e-9
    assert result.report.after.params < untrained.report.after.params
    assert result.tuned is not None
    tried = [note for note in result.report.notes if note.startswith("tried ")]
    assert len(list((tmp_path / "run").iterdir())) == len(tried)  # a checkpoint for each model
    again = rf.compress(net(), X, budget=budget, evaluate=metric, finetune=recipe)  # which is not trained again
    assert again.plan == result.plan
    assert again.report.metrics == result.report.metrics


def test_without_a_metric_there_is_nothing_to_search_by() -> None:
    with pytest.raises(ConfigError, match=r"accuracy_drop.*Pass evaluate="):
        rf.compress(net(), X, budget="accuracy_drop<=1%")


def test_the_model_is_left_alone() -> None:
    model = net()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    rf.compress(model, X, budget="accuracy_drop<=60%", evaluate=rf.top1(loader()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Killed(Exception):
    pass


def test_an_interrupted_search_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that was measured is kept; the result is that of a search which ran through."""
    data = [torch.randn(16, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def run(cache: Path | None) -> rf.Result:
        recipe = rf.FineTune(data=data, loss="distill", distill="mse", epochs=1)
        return rf.compress(net(), X, budget="accuracy_drop<=10%", evaluate=BySize(), finetune=recipe, cache=cache)

    whole = run(None)
    write, written = SavedLoops.write, list[str]()

    def interrupted(self: SavedLoops, *args: Any) -> None:
        write(self, *args)
        written.append(args[0])
        if len(written) == 4:
            raise Killed

    monkeypatch.setattr(SavedLoops, "write", interrupted)
    with pytest.raises(Killed):
        run(tmp_path)
    resumed = run(tmp_path)
    assert len(written) == sum("tried" in note for note in whole.report.notes) - 1
    assert resumed.plan == whole.plan
    assert [note for note in resumed.report.notes if "tried" in note] == [n for n in whole.report.notes if "tried" in n]
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert resumed.report.metrics == whole.report.metrics
