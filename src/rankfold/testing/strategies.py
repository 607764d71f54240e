"""The contract of strategies: every check on every strategy and every network of the model zoo."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rankfold import methods, strategies
from rankfold._config import build_config, config_to_dict
from rankfold.cost import gauged_cost
from rankfold.errors import InfeasibleBudget
from rankfold.inventory import inspect, layer_weight
from rankfold.inventory.narrowing import narrowed_weight
from rankfold.records import Bound, Budget, Plan, find_resource
from rankfold.strategies import Strategy
from rankfold.surgery import factored_layers
from rankfold.testing.problems import ModelCase, applied, make_problem, model_zoo
from rankfold.testing.subject import ERROR_SLACK, OUTPUT_TOLERANCE, count_macs, expect, relative_error, run_all

StrategyCheck = Callable[[Strategy, ModelCase], None]

BUDGETS = ("params<=98%", "params<=60%", "params/3", "macs<=70%", "flash<=60%", "params<=75%, macs<=85%", "memory<=90%")
"""The budgets that `budget_is_kept` tries."""

EXAMPLE_OPTIONS: dict[str, dict[str, Any]] = {
    "manual": {"layers": {"fc1": ("svd", (1,))}},
    "compressnas": {"tolerance": 0.2},  # without a budget the default keeps some of the networks as they are
    "rene": {"step": 4, "iterations": 20},  # what is checked does not depend on how far the coefficients have converged
    "norton": {"rank": 2},
    # The contract's networks are trained for a single step.
    "similarity": {"drop": 0.5, "coverage": 1.0, "step_size": 0.2, "max_sol": 1},
}
"""Options of registered strategies whose defaults give no plan, or an empty one."""


def plan_covers_every_layer(strategy: Strategy, case: ModelCase) -> None:
    """The plan has a choice for every layer of the inventory, with a reason for dense ones, and can be applied."""
    model = case.model()
    problem = make_problem(case, model)
    plan = strategy.plan(problem)
    names = [layer.name for layer in problem.inventory]
    expect(list(plan.layers) == names, f"the plan has the layers {list(plan.layers)}, the inventory {names}")
    narrow = problem.pricing.narrowed(plan.narrowing).inventory
    for name, choice in plan.layers.items():
        layer = problem.inventory.layer(name)
        if choice.method is None:
            expect(bool(choice.reason), f"layer {name!r} is kept without a reason")
        else:
            expect(layer.skip is None, f"layer {name!r} cannot be compressed ({layer.skip}) but is planned")
            method = methods.get(choice.method, choice.options)
            methods.check_supported(method, layer)
            methods.check_ranks(method, narrow.layer(name), choice.ranks)
        expect(plan.fingerprint.get(name) == layer.fingerprint, f"layer {name!r} has no fingerprint")
    expect(plan.provenance.strategy == strategy.name, f"provenance says {plan.provenance.strategy!r}")
    with torch.no_grad():
        dense, small = model(case.input()), applied(model, plan)(case.input())
    expect(dense.shape == small.shape and bool(small.isfinite().all()), "the applied plan does not run")


def budget_is_kept(strategy: Strategy, case: ModelCase) -> None:
    """The model built from a plan and counted again is within the budget; a refused budget is out of reach."""
    kept = 0
    for text in (*BUDGETS, *_part_budgets(case, case.model())):
        model = case.model()
        budget = Budget.parse(text)
        try:
            plan = strategy.plan(make_problem(case, model, budget=budget))
        except InfeasibleBudget as error:
            expect(len(error.rows) > 0, f"{text}: refused without a table of what is reachable")
            refused = any(asked < least for _, asked, least, _ in error.rows)
            expect(refused, f"{text}: refused though reachable: {error}")
            continue
        kept += 1
        _check_within(budget, model, applied(model, plan), case, text)
    expect(kept > 0 or not changes(strategy, case), "no budget at all could be met")


def changes(strategy: Strategy, case: ModelCase) -> bool:
    """Return whether a network has anything for a strategy to do."""
    return case.prunable if strategy.narrows else case.compressible


def _part_budgets(case: ModelCase, model: nn.Module) -> list[str]:
    """Return budgets of the first and of the last compressible layer, alone, together, and with the whole model's."""
    names = [layer.name for layer in make_problem(case, model).inventory.compressible]
    if not names:
        return []
    first, last = names[0], names[-1]
    return [
        f"params({first})<=60%",
        f"macs({last})<=70%",
        f"params({first})<=70%, macs({last})<=60%, params<=80%",
        f"params({first})<=70%, params(*)<=75%",  # overlapping
    ]


def _check_within(budget: Budget, model: nn.Module, small: nn.Module, case: ModelCase, text: str) -> None:
    inventory = make_problem(case, model, budget=budget).inventory
    for bound in budget.bounds:
        paths = frozenset({""}) if bound.part is None else inventory.paths_of(bound.part)
        amount, limit = _built_amount(bound, small, case, paths), bound.limit(inventory.total)
        expect(amount <= limit, f"{text}: the built model has {amount} {bound.resource}, allowed {limit}")


def _built_amount(bound: Bound, small: nn.Module, case: ModelCase, paths: Collection[str]) -> int:
    """Count a resource on the modules at some paths of a built model; 0 for a resource that is not counted here."""
    modules = [small.get_submodule(path) for path in paths]
    parameters = {p for module in modules for p in module.parameters()}
    buffers = {b for module in modules for b in module.buffers()}
    match find_resource(bound.resource).whole:
        case "params":
            return sum(p.numel() for p in parameters)
        case "flash":
            return sum(t.numel() * t.element_size() for t in parameters | buffers)
        case "macs" if bound.part is None:
            return count_macs(small, case.input())
        case "macs":
            return inspect(small, case.input()).within(paths).total.macs
        case _:
            return 0


def impossible_budget_is_refused(strategy: Strategy, case: ModelCase) -> None:
    """One parameter, one MAC, one parameter of a layer: `InfeasibleBudget` reports a value that can be reached."""
    names = [layer.name for layer in make_problem(case, case.model()).inventory.compressible]
    for resource in ("params", "macs", *(f"params({name})" for name in names[:1])):
        amount = 1
        for _ in range(4):  # the table's minimum may be lower than the strategy's
            model = case.model()
            budget = Budget((Bound(resource=resource, value=amount, relative=False),))
            try:
                plan = strategy.plan(make_problem(case, model, budget=budget))
            except InfeasibleBudget as error:
                rows = [row for row in error.rows if row[0] == resource]
                expect(len(rows) == 1, f"{budget}: no least reachable value of {resource}: {error}")
                _, asked, least, dense = rows[0]
                expect(asked == amount < least <= dense, f"{budget}: the table says {rows[0]}")
                named = str(least) in str(error).replace(",", "")
                expect(named, f"{budget}: the message does not name {least}: {error}")
                amount = int(least)
            else:
                expect(amount > 1, f"{budget} was not refused")
                _check_within(budget, model, applied(model, plan), case, str(budget))
                break
        else:
            raise AssertionError(f"{resource}: what the strategy names as the least reachable is refused too")


def same_plan_twice(strategy: Strategy, case: ModelCase) -> None:
    """The same problem gives the same plan; the model and torch's global generator are not changed."""
    model = case.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    texts = [strategy.plan(make_problem(case, model)).to_json() for _ in range(2)]
    expect(texts[0] == texts[1], "two plans of one problem differ")
    same = all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    expect(same, "planning changed the model")
    expect(torch.equal(state, torch.random.get_rng_state()), "torch's global random generator was used")


def plan_round_trips(strategy: Strategy, case: ModelCase) -> None:
    """After a round trip through JSON, a plan is the same and builds the same model, and options are the same."""
    model = case.model()
    plan = strategy.plan(make_problem(case, model))
    again = Plan.from_json(plan.to_json())
    expect(again.to_json() == plan.to_json(), "the plan's JSON changes when read and written")
    with torch.no_grad():
        outputs = [applied(model, p)(case.input()) for p in (plan, again)]
    expect(torch.equal(*outputs), "the plan read from JSON builds another model")
    options = json.loads(json.dumps(config_to_dict(strategy)))  # tuples become lists
    again = build_config(type(strategy), options, owner=f"strategy {strategy.name!r}")
    expect(json.loads(json.dumps(config_to_dict(again))) == options, "the options change when read from JSON")


def predictions_are_kept(strategy: Strategy, case: ModelCase) -> None:
    """Every planned layer has a predicted error, 0..1, that the built layer does not exceed."""
    model = case.model()
    problem = make_problem(case, model)
    plan = strategy.plan(problem)
    small, removed = applied(model, plan), plan.narrowing.removed()
    built = factored_layers(small)
    slack = ERROR_SLACK + OUTPUT_TOLERANCE[torch.float32]  # the built layer is in float32
    for name, choice in plan.factored.items():
        error = choice.error
        expect(error is not None and 0 <= error <= 1, f"layer {name!r} states the error {error}")
        layer, gone = problem.inventory.layer(name), removed.get(name, {})
        dense = narrowed_weight(layer_weight(model, name), layer, gone) if gone else layer_weight(model, name)
        achieved = relative_error(built[name].dense_weight(), dense)
        expect(achieved <= (error or 0) + slack, f"layer {name!r}: predicted {error}, achieved {achieved}")


def fixed_decisions_stand(strategy: Strategy, case: ModelCase) -> None:
    """A fixed decision is in the plan unchanged."""
    model = case.model()
    rows = make_problem(case, model).table().rows
    for name, row in list(rows.items())[-2:]:
        decided = row[len(row) // 2]
        plan = strategy.plan(make_problem(case, model, fixed={name: decided}))
        choice = plan.layers[name]
        expect(
            (choice.method, choice.ranks) == (decided.method, decided.ranks),
            f"layer {name!r} was fixed to {decided.method} {decided.ranks}, planned {choice.method} {choice.ranks}",
        )


def gauge_is_carried_out(strategy: Strategy, case: ModelCase) -> None:
    """With gauge=True, a choice is gauged exactly if that is smaller, and the built model is within the budget."""
    for text in (None, "params<=60%", "flash<=60%"):
        model = case.model()
        budget = None if text is None else Budget.parse(text)
        problem = make_problem(case, model, budget=budget, gauge=True)
        try:
            plan = strategy.plan(problem)
        except InfeasibleBudget:
            continue  # `budget_is_kept` checks this
        narrow = problem.pricing.narrowed(plan.narrowing).inventory
        for name, choice in plan.factored.items():
            layer = narrow.layer(name)
            method = methods.get(choice.method or "", choice.options)
            _, wins = gauged_cost(method.blueprint(layer, choice.ranks), layer)
            expect(choice.gauge == wins, f"layer {name!r}: gauged {choice.gauge}, but it wins: {wins}")
        if budget is not None:
            _check_within(budget, model, applied(model, plan), case, f"{text}, gauged")


STRATEGY_CHECKS: tuple[StrategyCheck, ...] = (
    plan_covers_every_layer,
    budget_is_kept,
    impossible_budget_is_refused,
    same_plan_twice,
    plan_round_trips,
    predictions_are_kept,
    fixed_decisions_stand,
    gauge_is_carried_out,
)
"""Every check of a strategy."""


def strategy_checks(
    strategy: str | Strategy | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    cases: Sequence[ModelCase] | None = None,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every check of one strategy, or of all registered ones, as ``(id, callable)``; see `method_checks`.

    Parameters
    ----------
    strategy : str, Strategy or None
        A registered name, an instance, or None for every registered strategy.
    options : mapping or None
        Options of a strategy given by name.
    cases : sequence of ModelCase or None
        Networks to plan; all of `model_zoo` by default.
    """
    if strategy is None:
        for name in strategies.registry.names():
            yield from strategy_checks(name, cases=cases)
        return
    if isinstance(strategy, str):
        strategy = strategies.get(strategy, EXAMPLE_OPTIONS.get(strategy) if options is None else options)
    for case in model_zoo() if cases is None else cases:
        for check in STRATEGY_CHECKS:
            yield f"{strategy.name}-{case.id}-{check.__name__}", partial(check, strategy, case)


def check_strategy(
    strategy: str | Strategy,
    *,
    options: Mapping[str, Any] | None = None,
    cases: Sequence[ModelCase] | None = None,
) -> int:
    """Run every check of one strategy and return their number; raise ``AssertionError`` naming those that failed."""
    return run_all(strategy_checks(strategy, options=options, cases=cases))
