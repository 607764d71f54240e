"""Each check fails on a method or strategy that is broken in the way the check is there to find."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rankfold import methods, strategies
from rankfold.errors import InfeasibleBudget
from rankfold.factor.moments import Moments
from rankfold.methods import Method, Prepared
from rankfold.records import Blueprint, Budget, Choice, ConvSpec, GaugedSpec, LayerInfo, LinearSpec, Plan, Ranks, Stage
from rankfold.strategies import Problem, Strategy
from rankfold.surgery import FactoredLinear
from rankfold.surgery.gauged import GaugedInput
from rankfold.testing import (
    LAYER_ZOO,
    LayerCase,
    accuracy,
    check_method,
    check_strategy,
    costs,
    exactness,
    method_checks,
    model_zoo,
    modules,
    refusals,
)
from rankfold.testing import strategies as strategy_contract
from rankfold.testing.gauge import GaugedMethod, gauge_changes_only_the_numbers

CASES = {case.id: case for case in LAYER_ZOO}


class Broken(Method):
    """A registered method, handed through; subclasses break one thing."""

    name = "broken"
    wraps = "svd"

    def __init__(self) -> None:
        self.inner: Method = methods.get(self.wraps)

    def supports(self, layer: LayerInfo) -> str | None:
        return self.inner.supports(layer)

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        return self.inner.max_ranks(layer)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        return self.inner.rank_grid(layer, multiple=multiple, points=points)

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        return self.inner.blueprint(layer, ranks)

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        return BrokenPrepared(self, self.inner.prepare(weight, layer, moments), layer)

    def error(self, ranks: Ranks, right: float) -> float:
        return right

    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return right


class BrokenPrepared:
    def __init__(self, method: Broken, inner: Prepared, layer: LayerInfo) -> None:
        self.method, self.inner, self.layer = method, inner, layer

    def error(self, ranks: Ranks) -> float:
        return self.method.error(ranks, self.inner.error(ranks))

    def factorize(self, ranks: Ranks) -> tuple[Tensor, ...]:
        return self.method.factors(self.inner.factorize(ranks))


class Stages(Broken):
    """Breaks the stages of the blueprint."""

    def stage(self, stage: Stage) -> Stage:
        return stage

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        return Blueprint(tuple(self.stage(s) for s in super().blueprint(layer, ranks).stages))


class WrongPadding(Stages):
    def stage(self, stage: Stage) -> Stage:
        return replace(stage, padding_mode="zeros") if isinstance(stage, ConvSpec) else stage


class WrongStride(Stages):
    def stage(self, stage: Stage) -> Stage:
        return replace(stage, stride=(1,) * len(stage.kernel)) if isinstance(stage, ConvSpec) else stage


class WrongDilation(Stages):
    def stage(self, stage: Stage) -> Stage:
        return replace(stage, dilation=(1,) * len(stage.kernel)) if isinstance(stage, ConvSpec) else stage


class DroppedBias(Stages):
    def stage(self, stage: Stage) -> Stage:
        return replace(stage, bias=False) if isinstance(stage, ConvSpec | LinearSpec) else stage


class ForgottenOutputPadding(Stages):
    def stage(self, stage: Stage) -> Stage:
        return replace(stage, output_padding=(0,) * len(stage.kernel)) if isinstance(stage, ConvSpec) else stage


class OtherShapes(Stages):
    """A blueprint one channel too wide inside."""

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        return super().blueprint(layer, (ranks[0] + 1,))


class LosesPrecision(Broken):
    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(f.bfloat16().to(f) for f in right)


class DropsDirection(Broken):
    """Zeroes a row of the first factor."""

    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = right[0].clone()
        first.reshape(first.shape[0] if first.ndim == 2 else first.shape[1], -1)[0] = 0
        return first, *right[1:]


class ZeroFactor(Broken):
    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.zeros_like(right[0]), *right[1:])


class NotFinite(Broken):
    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (right[0] / 0.0, *right[1:])


class Random(Broken):
    """Rotates the factors by the global generator: right in every output, other bits every time."""

    def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        flip = torch.randn(()).sign() * torch.rand(()).exp()
        return (right[0] * flip, right[1] / flip, *right[2:])


class Optimistic(Broken):
    def error(self, ranks: Ranks, right: float) -> float:
        return right * 0.9


class Growing(Broken):
    """An error that is right at both ends and bumpy between."""

    def error(self, ranks: Ranks, right: float) -> float:
        return min(1.0, right * (1.5 if ranks[0] % 2 == 0 else 1.0))


class AboveOne(Broken):
    def error(self, ranks: Ranks, right: float) -> float:
        return 2 * right


class Unsteady(Broken):
    """Every preparation predicts less than the one before."""

    calls = 0

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        self.calls += 1
        return BrokenPrepared(copy.copy(self), self.inner.prepare(weight, layer, moments), layer)

    def error(self, ranks: Ranks, right: float) -> float:
        return right / self.calls


class NoGrid(Broken):
    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        return []


class GridBeyondLimits(Broken):
    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        return [(self.max_ranks(layer)[0] + 1,)]


class GridTwice(Broken):
    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        return [(1,), (1,)]


class TooSmallLimit(Broken):
    def max_ranks(self, layer: LayerInfo) -> Ranks:
        return (self.inner.max_ranks(layer)[0] - 1,)


class NoReason(Broken):
    def supports(self, layer: LayerInfo) -> str | None:
        return ""


Check = Callable[[Method, LayerCase], None]


@pytest.mark.parametrize(
    ("check", "broken", "case", "words"),
    [
        (exactness.full_rank_is_exact, WrongPadding, "conv2d-circular", "output is off"),
        (exactness.full_rank_is_exact, WrongPadding, "conv2d-reflect", "output is off"),
        (exactness.full_rank_is_exact, WrongStride, "conv2d-stride", "shape"),
        (exactness.full_rank_is_exact, WrongDilation, "conv2d-dilation", "shape"),
        (exactness.full_rank_is_exact, WrongDilation, "conv1d-dilation-same", "output is off"),
        (exactness.full_rank_is_exact, DroppedBias, "conv2d", "output is off"),
        (exactness.full_rank_is_exact, DroppedBias, "linear", "output is off"),
        (exactness.full_rank_is_exact, ForgottenOutputPadding, "conv2d-transposed", "shape"),
        (exactness.full_rank_is_exact, LosesPrecision, "linear", "output is off"),
        (exactness.full_rank_is_exact, LosesPrecision, "conv2d-float64", "output is off"),
        (exactness.full_rank_is_exact, DropsDirection, "conv3d", "output is off"),
        (exactness.full_rank_is_exact, TooSmallLimit, "conv2d", "output is off"),
        (exactness.weight_is_what_forward_computes, WrongPadding, "conv2d-replicate", "differ by"),
        (exactness.weight_is_what_forward_computes, WrongDilation, "conv1d-dilation-same", "differ by"),
        (exactness.weight_is_what_forward_computes, DroppedBias, "linear", "bias"),
        (exactness.output_looks_the_same, WrongStride, "conv2d-stride", "shape"),
        (exactness.factors_fill_the_blueprint, OtherShapes, "conv2d", "blueprint states"),
        (exactness.factors_fill_the_blueprint, NotFinite, "linear", "not finite"),
        (exactness.special_weights_work, DropsDirection, "conv2d", "output is off"),
        (exactness.special_weights_work, NotFinite, "conv2d", "not finite"),
        (exactness.same_bits_twice, Random, "conv2d", "other factors the second time"),
        (costs.grid_is_valid, NoGrid, "conv2d", "empty"),
        (costs.grid_is_valid, GridTwice, "conv2d", "duplicates"),
        (costs.grid_is_valid, GridBeyondLimits, "conv2d", "the limits are"),
        (exactness.same_bits_twice, Unsteady, "conv2d", "another error"),
        (accuracy.scale_does_not_matter, Unsteady, "conv2d", "after scaling"),
        (accuracy.moments_change_only_the_metric, Unsteady, "conv2d", "white ones"),
        (accuracy.prediction_is_kept, Optimistic, "conv2d", "predicted"),
        (accuracy.prediction_is_kept, DropsDirection, "linear", "predicted"),
        (accuracy.error_never_grows_with_a_rank, Growing, "conv2d", "grows"),
        (accuracy.error_never_grows_with_a_rank, AboveOne, "conv2d", "not in 0..1"),
        (accuracy.error_never_grows_with_a_rank, TooSmallLimit, "conv2d", "full rank"),
        (accuracy.moments_change_only_the_metric, DropsDirection, "linear", "full rank with moments"),
        (modules.gradients_reach_every_factor, ZeroFactor, "conv2d", "is zero"),
        (modules.autocast_runs, DropsDirection, "linear", "under autocast"),
        (refusals.unsupported_layers_are_refused, NoReason, "conv2d", "gives no reason"),
    ],
)
def test_a_broken_method_fails(check: Check, broken: type[Broken], case: str, words: str) -> None:
    if check is not refusals.unsupported_layers_are_refused:  # which is not for supported layers
        check(Broken(), CASES[case])
    with pytest.raises(AssertionError, match=words):
        check(broken(), CASES[case])


def test_a_wrong_count_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = costs.blueprint_cost
    for resource in ("params", "macs", "fm", "weight_bytes"):

        def wrong(blueprint: Blueprint, layer: LayerInfo, resource: str = resource) -> Any:
            cost = right(blueprint, layer)
            return replace(cost, **{resource: getattr(cost, resource) + 1})

        monkeypatch.setattr(costs, "blueprint_cost", wrong)
        with pytest.raises(AssertionError, match="the blueprint says"):
            costs.cost_is_the_modules(methods.get("tucker"), CASES["conv2d-stride"])


def test_a_module_that_reads_its_dense_weight_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FactoredLinear, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)

    modules.no_dense_weight_in_forward(methods.get("svd"), CASES["linear"])
    monkeypatch.setattr(FactoredLinear, "forward", forward)
    with pytest.raises(AssertionError, match="reads .weight"):
        modules.no_dense_weight_in_forward(methods.get("svd"), CASES["linear"])
    with pytest.raises(AssertionError, match="MACs"):
        costs.cost_is_the_modules(methods.get("svd"), CASES["linear"])


def test_a_module_that_breaks_the_graph_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FactoredLinear, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return torch.nn.Sequential.forward(self, x)

    monkeypatch.setattr(FactoredLinear, "forward", forward)
    with pytest.raises(Exception, match="graph_break|graph break"):
        modules.compiles_whole(methods.get("svd"), CASES["linear"])
    torch.compiler.reset()


def test_a_module_that_looks_at_values_cannot_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FactoredLinear, x: Tensor) -> Tensor:
        y = torch.nn.Sequential.forward(self, x)
        return y if float(y.sum()) > 0 else y + 0

    monkeypatch.setattr(FactoredLinear, "forward", forward)
    with pytest.raises(Exception, match=r"data-dependent|Could not guard"):
        modules.exports(methods.get("svd"), CASES["linear"])


def test_a_module_that_loses_its_state_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactoredLinear, "load_state_dict", lambda self, state, strict=True: None)
    with pytest.raises(AssertionError, match="reloaded module computes something else"):
        modules.state_dict_round_trip(methods.get("svd"), CASES["linear"])


def test_a_module_that_copies_itself_by_reference_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactoredLinear, "__deepcopy__", lambda self, memo: self, raising=False)
    with pytest.raises(AssertionError, match="the copy shares memory"):
        modules.copies_and_pickles(methods.get("svd"), CASES["linear"])


def test_a_gauge_that_changes_the_function_or_saves_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    method, case = methods.get("tucker"), CASES["conv2d-stride"]
    gauge_changes_only_the_numbers(method, case)
    with monkeypatch.context() as patch:

        def unordered(self: GaugedInput, x: Tensor) -> Tensor:
            assert self.rest is not None
            return x[:, : self.rank] + self.rest(x[:, self.rank :])

        patch.setattr(GaugedInput, "forward", unordered)
        with pytest.raises(AssertionError, match="off by"):
            gauge_changes_only_the_numbers(method, case)
        with pytest.raises(AssertionError, match=r"\.weight and the forward pass differ"):
            exactness.weight_is_what_forward_computes(GaugedMethod(method), case)
    fewest = GaugedSpec.weights.fget
    assert fewest is not None
    monkeypatch.setattr(GaugedSpec, "weights", property(lambda self: fewest(self) + 1))
    with pytest.raises(AssertionError, match="the blueprint says .* MACs"):
        costs.cost_is_the_modules(GaugedMethod(method), case)


def test_a_weight_cut_off_from_its_factors_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FactoredLinear.weight
    monkeypatch.setattr(FactoredLinear, "weight", property(lambda self: right.__get__(self).detach()))
    with pytest.raises(RuntimeError, match="does not require grad"):
        modules.weight_is_differentiable(methods.get("svd"), CASES["linear"])


def test_a_composition_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right, svd = methods.compose, methods.get("svd")

    class CutOff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2 * gradient

    monkeypatch.setattr(methods, "compose", lambda *args: 2 * right(*args))
    with pytest.raises(AssertionError, match=r"the composed factors and \.weight differ"):
        exactness.weight_is_what_forward_computes(svd, CASES["linear"])
    monkeypatch.setattr(methods, "compose", lambda *args: CutOff.apply(right(*args)))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        modules.weight_is_differentiable(svd, CASES["linear"])


def test_ranks_that_are_not_checked_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "check_ranks", lambda method, layer, ranks: None)
    with pytest.raises(AssertionError, match="accepted"):
        refusals.bad_ranks_are_refused(methods.get("svd"), CASES["linear"])


def test_weights_that_are_not_checked_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "prepare", lambda method, weight, layer, moments=None: None)
    with pytest.raises(AssertionError, match="accepted"):
        refusals.broken_weights_are_refused(methods.get("svd"), CASES["linear"])
    with pytest.raises(AssertionError, match="refuses: accepted"):
        refusals.unsupported_layers_are_refused(methods.get("qr"), CASES["conv2d"])


def test_check_method_names_everything_that_failed() -> None:
    case = [CASES["conv2d-circular"]]
    count = check_method(methods.get("svd"), cases=case)
    assert count == len(list(method_checks("svd", cases=case)))
    with pytest.raises(AssertionError) as caught:
        check_method(WrongPadding(), cases=case)
    text = str(caught.value)
    assert f"of {count} checks failed" in text
    assert "broken-conv2d-circular-full_rank_is_exact: AssertionError: ranks (8,): the output is off" in text
    assert "weight_is_what_forward_computes" in text
    assert "cost_is_the_modules" not in text


def test_a_crash_is_a_failure() -> None:
    class Crashes(Broken):
        def factors(self, right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            raise ZeroDivisionError("of course")

    with pytest.raises(AssertionError, match="ZeroDivisionError: of course"):
        check_method(Crashes(), cases=[CASES["linear"]])


@dataclass(init=False)
class BrokenStrategy(Strategy):
    """``energy``, handed through; subclasses break one thing."""

    name = "broken"

    def __init__(self) -> None:
        self.inner: Strategy = strategies.get("energy")
        self.calls = 0

    def plan(self, problem: Problem) -> Plan:
        self.calls += 1
        return self.change(replace(self.inner.plan(problem), provenance=self._provenance(problem)))

    def _provenance(self, problem: Problem) -> Any:
        return replace(self.inner.plan(problem).provenance, strategy=self.name)

    def change(self, plan: Plan) -> Plan:
        return plan

    def edited(self, plan: Plan, **changes: Any) -> Plan:
        layers: Mapping[str, Choice] = {n: replace(c, **changes) for n, c in plan.factored.items()}
        return replace(plan, layers={**plan.layers, **layers})


class ForgetsALayer(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        return replace(plan, layers=dict(list(plan.layers.items())[:-1]))


class KeepsWithoutReason(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        return replace(plan, layers={n: Choice() for n in plan.layers})


class IgnoresTheBudget(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        return super().plan(replace(problem, budget=None))


class IgnoresParts(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        bounds = () if problem.budget is None else problem.budget.bounds
        whole = tuple(bound for bound in bounds if bound.part is None)
        return super().plan(replace(problem, budget=Budget(whole) if whole else None))


class RefusesEverything(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        if problem.budget is not None:
            raise InfeasibleBudget("no", [("params", 10, 5, 20), ("macs", 10, 5, 20)])
        return super().plan(problem)


class RefusesInSilence(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        if problem.budget is not None:
            raise InfeasibleBudget("no")
        return super().plan(problem)


class ChangesItsMind(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        return self.edited(plan, error=1 / (1 + self.calls))


class ChangesTheModel(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        for layer in problem.inventory:
            problem.weight(layer.name).mul_(2)
        return super().plan(problem)


class DrawsRandomNumbers(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        torch.rand(1)
        return plan


class PromisesTooMuch(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        return self.edited(plan, error=0.0)


class OverridesTheUser(BrokenStrategy):
    def plan(self, problem: Problem) -> Plan:
        return super().plan(replace(problem, fixed={}))


class ForgetsTheGauge(BrokenStrategy):
    def change(self, plan: Plan) -> Plan:
        return self.edited(plan, gauge=False)


@pytest.mark.parametrize(
    ("check", "broken", "words"),
    [
        (strategy_contract.plan_covers_every_layer, ForgetsALayer, "the plan has the layers"),
        (strategy_contract.plan_covers_every_layer, KeepsWithoutReason, "without a reason"),
        (strategy_contract.budget_is_kept, IgnoresTheBudget, "the built model has"),
        (strategy_contract.budget_is_kept, IgnoresParts, r"the built model has \d+ params\(fc1\)"),
        (strategy_contract.budget_is_kept, RefusesEverything, "though reachable"),
        (strategy_contract.budget_is_kept, RefusesInSilence, "without a table"),
        (strategy_contract.impossible_budget_is_refused, IgnoresTheBudget, "was not refused"),
        (strategy_contract.impossible_budget_is_refused, RefusesEverything, "the table says"),
        (strategy_contract.impossible_budget_is_refused, RefusesInSilence, "no least reachable value"),
        (strategy_contract.same_plan_twice, ChangesItsMind, "differ"),
        (strategy_contract.same_plan_twice, ChangesTheModel, "changed the model"),
        (strategy_contract.same_plan_twice, DrawsRandomNumbers, "generator"),
        (strategy_contract.predictions_are_kept, PromisesTooMuch, "achieved"),
        (strategy_contract.fixed_decisions_stand, OverridesTheUser, "was fixed to"),
        (strategy_contract.gauge_is_carried_out, ForgetsTheGauge, "but it wins"),
    ],
)
def test_a_broken_strategy_fails(
    check: Callable[[Strategy, Any], None], broken: type[BrokenStrategy], words: str
) -> None:
    case = model_zoo()[0]
    check(BrokenStrategy(), case)
    with pytest.raises(AssertionError, match=words):
        check(broken(), case)


def test_a_config_that_loses_something_fails() -> None:
    strategy = strategies.get("energy")
    check = strategy_contract.plan_round_trips
    check(strategy, model_zoo()[0])

    class Loses(BrokenStrategy):
        def change(self, plan: Plan) -> Plan:
            return self.edited(plan, options={"x": {1: 2}})

    with pytest.raises(Exception, match="JSON|option"):
        check(Loses(), model_zoo()[0])


def test_check_strategy_names_everything_that_failed() -> None:
    with pytest.raises(AssertionError) as caught:
        check_strategy(IgnoresTheBudget(), cases=[model_zoo()[0]])
    assert "broken-mlp-budget_is_kept" in str(caught.value)
    assert "same_plan_twice" not in str(caught.value)
