"""What strategies that loop work with: handles, training, comparing, a differentiable loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rankfold as rf
from rankfold.calibration import compared_places, similarities
from rankfold.errors import ConfigError, DataError
from rankfold.inventory import layer_weight, static_inventory
from rankfold.records import Plan
from rankfold.strategies import Handle, Problem, Strategy, Workbench, check_needs
from rankfold.surgery.values import take_over_
from rankfold.workbench import Bench, CompressedModel, own_checkpoint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 4)
    ).eval()


X, Y = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(10) % 4
BATCHES = [(X[:6], Y[:6]), (X[6:], Y[6:])]


def small_plan(model: nn.Module, x: Tensor = X) -> Plan:
    return rf.plan(model, x, budget="params<=50%", strategy="energy")


def make_bench(model: nn.Module, **given: Any) -> Workbench:
    options: dict[str, Any] = {
        "batches": BATCHES,
        "metric": rf.top1(BATCHES),
        "recipe": rf.FineTune(data=BATCHES, epochs=1),
    }

    def make(plan: Plan, like: nn.Module | None) -> CompressedModel:
        small = rf.apply(model, plan)
        if like is not None:
            take_over_(small, like, static_inventory(model))
        return CompressedModel(model=small)

    return Bench(model, make, **(options | given))


def test_models_are_applied_trained_and_measured() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    error = rf.evaluation.output_error(model, BATCHES)
    bench = make_bench(model, metric=error)
    small, other = bench.apply(small_plan(model)), bench.apply(small_plan(model))
    start = bench.evaluate(small)
    assert bench.evaluate() == 0 < start == bench.drop(small) == bench.evaluate(other)
    bench.finetune(small)
    assert bench.evaluate(small) != start
    assert bench.evaluate(other) == start
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("options", "calls"), [({}, 0), ({"schedule": "plateau"}, 2), ({"keep": "best"}, 2)])
def test_recipes_that_use_the_metric_get_it(options: dict[str, Any], calls: int) -> None:
    seen: list[nn.Module] = []
    model = network()
    recipe = rf.FineTune(data=BATCHES, epochs=2, **options)
    bench = make_bench(model, metric=lambda trained: float(seen.append(trained) or len(seen)), recipe=recipe)
    small = bench.apply(small_plan(model))
    before = len(seen)
    bench.finetune(small)
    assert len(seen) - before == calls


def test_the_drop_follows_the_metrics_direction() -> None:
    model = network()
    plan, metric = small_plan(model), rf.top1(BATCHES)
    bench = make_bench(model, metric=metric)
    small = bench.apply(plan)
    assert bench.drop(small) == rf.evaluate(model, metric) - rf.evaluate(rf.apply(model, plan), metric)


def test_the_similarity_is_that_of_the_feature_maps() -> None:
    model = network()
    plan = small_plan(model)
    bench = make_bench(model)
    layers = static_inventory(model)
    places = compared_places(model, layers, X)
    assert bench.places(["0", "4"]) == {name: places[name] for name in ("0", "4")}
    values = bench.similarity(bench.apply(plan), ["0", "4", "6"])
    wanted = similarities(model, rf.apply(model, plan), places, BATCHES, samples=1000)
    assert values == pytest.approx(wanted, abs=1e-6)
    assert min(values.values()) < 1
    few = similarities(model, rf.apply(model, plan), places, BATCHES, samples=3)
    assert bench.similarity(bench.apply(plan), ["4"], samples=3)["4"] == pytest.approx(few["4"], abs=1e-6)


def test_layers_that_no_sample_reaches_have_no_similarity() -> None:
    attention = Attention()
    bench = make_bench(attention, batches=[torch.randn(2, 5, 8)])
    assert set(bench.places(["out", "idle"])) == {"out"}
    with pytest.raises(DataError, match="no calibration sample reaches layer 'idle'"):
        bench.similarity(bench.apply(small_plan(attention, torch.randn(2, 5, 8))), ["out", "idle"])


def test_equal_factors_and_everything_else_take_over_the_values_of_another_model() -> None:
    model = network()
    plan = rf.plan(model, X, strategy=rf.Manual(layers={"0": ("tucker", (2, 2)), "4": ("svd", 3)}))
    other = rf.plan(model, X, strategy=rf.Manual(layers={"0": ("tucker", (2, 2)), "4": ("svd", 5)}))
    bench = make_bench(model)
    trained = bench.apply(plan)
    bench.finetune(trained)
    small = bench.apply(other, like=trained)
    states = [handle.model.state_dict() for handle in (small, trained, bench.apply(other))]  # pyright: ignore
    new, old, fresh = states
    for name, tensor in new.items():
        assert torch.equal(tensor, (fresh if name.startswith("4.") else old)[name]), name
    assert not torch.equal(old["1.weight"], fresh["1.weight"])
    assert not torch.equal(old["1.running_mean"], fresh["1.running_mean"])


def test_a_metric_is_measured_once_between_trainings() -> None:
    calls: list[int] = []
    model = network()

    def counted(net: nn.Module) -> float:
        calls.append(1)
        return rf.top1(BATCHES)(net)

    bench = make_bench(model, metric=counted)
    small = bench.apply(small_plan(model))
    assert bench.evaluate(small) == bench.evaluate(small)
    bench.drop(small)
    assert len(calls) == 2  # of the model and of the original
    bench.finetune(small)
    bench.drop(small)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["0", "4", "6"])
def test_the_loss_is_differentiable_in_given_weights(name: str) -> None:
    model = network()
    bench, (batch, _) = make_bench(model), BATCHES
    weights = {name: (layer_weight(model, name) * 0.5).requires_grad_()}
    (first, *_) = bench.batches()
    loss = bench.loss(weights, first)
    (gradient,) = torch.autograd.grad(loss, weights.values())
    parameter = model.get_submodule(name).get_parameter("weight")
    with torch.no_grad():
        parameter.copy_(weights[name])
    wanted = cross_entropy(model(batch[0]), batch[1])
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, parameter)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)
        self.mix, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x, x, x, need_weights=False)[0].mean(1))


def test_the_loss_of_a_packed_projection() -> None:
    torch.manual_seed(0)
    model, data = Attention().eval(), [(torch.randn(4, 5, 8), torch.arange(4) % 3)]
    bench = make_bench(model, batches=data, recipe=None)
    names = ["mix.q_proj", "mix.v_proj", "mix.out_proj"]
    weights = {name: layer_weight(model, name).clone().requires_grad_() for name in names}
    gradients = torch.autograd.grad(bench.loss(weights, next(bench.batches())), weights.values())
    loss = cross_entropy(model(data[0][0]), data[0][1])
    packed, out = torch.autograd.grad(loss, [model.mix.in_proj_weight, model.mix.out_proj.weight])
    for gradient, wanted in zip(gradients, (packed[:8], packed[16:], out), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_what_was_not_given() -> None:
    model = network()
    bench = make_bench(model, batches=None, metric=None, recipe=None)
    small = bench.apply(small_plan(model))
    for use, words in (
        (lambda: bench.evaluate(small), "needs a metric"),
        (lambda: bench.evaluate(), "needs a metric"),
        (lambda: bench.drop(small), "needs a metric"),
        (lambda: bench.finetune(small), "needs a recipe"),
        (lambda: list(bench.batches()), "needs calibration data"),
        (lambda: bench.similarity(small, ["0"]), "needs calibration data"),
        (lambda: bench.evaluate(Handle(model)), "takes the models that it returned"),
    ):
        with pytest.raises(ConfigError, match=words):
            use()
    unlabeled = make_bench(model, batches=[X])
    with pytest.raises(DataError, match="the loss needs labels"):
        unlabeled.loss({}, next(unlabeled.batches()))


def test_needs_follow_from_the_declaration() -> None:
    @dataclass(frozen=True)
    class Picky(Strategy):
        name = "picky"
        needs = frozenset({"metric", "labels"})

        def plan(self, problem: Problem) -> Plan:
            raise NotImplementedError

    check_needs(Picky(), {"metric", "labels", "recipe"})
    check_needs(rf.Energy(), set())
    with pytest.raises(ConfigError, match=r"strategy 'picky' needs a metric. Use compress with evaluate"):
        check_needs(Picky(), {"labels"})
    with pytest.raises(ConfigError, match=r"strategy 'picky' needs labels. Pass calibration=... with batches"):
        check_needs(Picky(), {"metric", "calibration"})


def test_every_training_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    recipe = rf.FineTune(data=BATCHES, epochs=1, checkpoint=tmp_path / "run")
    assert own_checkpoint(recipe, "a.b").checkpoint == tmp_path / "run" / "a_b"
    assert own_checkpoint(replace(recipe, checkpoint="x/run.pt"), "a").checkpoint == Path("x/run-a.pt")
    model = network()
    bench = make_bench(model, recipe=recipe)
    for _ in range(2):
        bench.finetune(bench.apply(small_plan(model)))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["round-1", "round-2"]
