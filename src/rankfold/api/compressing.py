"""``compress``: plan and realize in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import nn

from rankfold import strategies
from rankfold._config import config_to_dict
from rankfold._options import given
from rankfold._turns import in_grad_turn
from rankfold.api.checks import BudgetLike
from rankfold.api.family import folder_name
from rankfold.api.identity import identity
from rankfold.api.options import search_of
from rankfold.api.planning import Planner
from rankfold.api.realizing import Clock, Draft, Measure, Output, Realizer, Result, check_work
from rankfold.api.searching import check_searchable, smallest_within
from rankfold.evaluation import as_metric
from rankfold.methods import sharing_prepared
from rankfold.records import ACCURACY, Budget, Plan
from rankfold.strategies import Need
from rankfold.tune import FineTune
from rankfold.tune.batch_source import first_digest
from rankfold.workbench import Bench, SavedLoops, SearchIdentity, own_checkpoint


@in_grad_turn
@sharing_prepared()
def compress(
    model: nn.Module,
    example_input: Any,
    *,
    budget: BudgetLike | None = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Measure | None = None,
    finetune: FineTune | None = None,
    output: Output | None = None,
    name: str = "",
    **options: Any,
) -> Result:
    """Compress a trained model: inspect, plan, apply, fine-tune, save, load, measure, report.

    Parameters
    ----------
    model, example_input
        As for `plan`. The model is left untouched.
    budget : str, mapping, sequence or Budget, optional
        As for `plan`. The budget may also bound the loss of accuracy: ``"accuracy_drop<=1%"`` returns the smallest
        model whose metric is at most 0.01 worse than the original's (in parameters, or in the first other resource
        that the budget bounds). It is found by bisection over up to seven models, each of which is built, fine-tuned
        if `finetune` is given, and measured.
    calibration : iterable, optional
        As for `plan`. BatchNorm statistics are also re-estimated on it where that helps.
    evaluate, finetune, output, name
        As for `realize`.
    **options
        Options of the search, such as ``methods="svd"`` or ``gauge=True``: the fields of `Search`.

    Returns
    -------
    Result

    Raises
    ------
    RankfoldError
        As for `plan`; nothing is written then.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> result = rf.compress(net, torch.randn(1, 32), budget="params<=50%")
    >>> result.report.after.params <= result.report.before.params // 2
    True
    """
    clock = Clock()
    bounds = None if budget is None else Budget.parse(budget)
    search = search_of(options)
    measures = ACCURACY in strategies.get(search.strategy).handles
    searched = check_searchable(bounds, evaluate is not None) and not measures
    check_work(model, evaluate=evaluate, finetune=finetune, output=output)
    at_hand: dict[Need, Any] = {"metric": evaluate, "recipe": finetune}
    planner = Planner(
        model, example_input, search, calibration,
        bounds.without(ACCURACY) if bounds is not None and searched else bounds,
        given=[need for need, value in at_hand.items() if value is not None],
    )  # fmt: skip
    planner.prove()
    clock.lap("inspect")
    metric = None if evaluate is None else as_metric(evaluate)
    realizer = Realizer(
        model=model, example_input=example_input, inventory=planner.inventory, data=planner.data, how=planner.how,
        metric=metric, name=name, clock=clock, spare=planner.spare, timer=planner.timer,
    )  # fmt: skip
    maker = replace(realizer, clock=Clock())  # the time of a strategy that trains belongs to planning
    bench = planner.workbench = Bench(
        model, partial(maker.apply, measured=False), batches=None if planner.data is None else planner.data.batches,
        metric=metric, recipe=finetune, loops=_loops(planner, realizer, finetune, bounds),
    )  # fmt: skip
    dense = dict[str, float]()
    if metric is not None:
        dense["dense"] = bench.evaluate()
        clock.lap("evaluate")
    if planner.moments is not None:
        clock.lap("calibrate")

    def make(plan: Plan) -> Draft:
        clock.lap("plan")
        kept, bench.kept = bench.kept, None
        draft = realizer.apply(plan) if kept is None else realizer.adopt(kept, plan)
        if finetune is not None and kept is None:
            label = folder_name(plan.provenance.budget or "")
            realizer.tune(draft, own_checkpoint(finetune, label) if searched else finetune, teacher=model)
        draft.values |= dense
        return draft

    notes = list[str]()
    if searched and bounds is not None and metric is not None:
        best = smallest_within(planner, bounds, make, dense=dense["dense"], metric=metric, bench=bench)
        draft, notes = best.draft, best.notes(bounds, metric.name, dense["dense"])
    else:
        draft = make(planner.plan(bounds))
    notes = [*(f"{layer}: {note}" for layer, note in planner.unknown().items()), *notes]
    planner.forget()
    result = realizer.finish(draft, budget=bounds, notes=notes)
    return result if output is None else result.save(output)


def _loops(planner: Planner, realizer: Realizer, recipe: FineTune | None, bounds: Budget | None) -> SavedLoops | None:
    """Return where a strategy that trains saves its progress; None without a cache folder or a recipe."""
    search = planner.search
    if search.cache is None or recipe is None or realizer.metric is None:
        return None

    def identity_of_search() -> SearchIdentity | None:
        known = realizer.search_identity()
        if known is None:
            return None
        free = {"data", "checkpoint", "checkpoint_every", "resume"}
        options = {f.name: identity(getattr(recipe, f.name)) for f in fields(recipe) if f.name not in free}
        facts = {
            "what": "progress of a strategy",
            "strategy": [planner.strategy.name, config_to_dict(planner.strategy)],
            "options": given(replace(search, cache=None)),
            "budget": str(bounds),
            "recipe": [options, first_digest(recipe.data, recipe.seed)],
        }
        return replace(known, facts={**known.facts, **facts})

    return SavedLoops(search.cache, identity_of_search)
