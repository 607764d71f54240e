"""``sweep``: plans for a whole range of budgets, and a family of models, from one table."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from torch import nn

from rankfold._config import Code, is_integer, is_number, require, spelled
from rankfold._options import integer
from rankfold._progress import track
from rankfold._turns import in_grad_turn
from rankfold.api.checks import BudgetLike
from rankfold.api.family import Family
from rankfold.api.options import search_of
from rankfold.api.planning import Planner
from rankfold.api.realizing import Destination, Measure, Output, Realizer, check_work, metric_value
from rankfold.candidates.cache import Cache
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, UnknownNameError
from rankfold.evaluation import as_metric
from rankfold.inventory import layer_weight
from rankfold.inventory.narrowing import lost_energy
from rankfold.methods import sharing_prepared
from rankfold.records import Bound, Budget, CandidateTable, Plan, find_resource, resource_names
from rankfold.reporting.sweep import Sweep, SweepPoint

MOST_POINTS = 1000
COUNT_OF_POINTS = integer(2, MOST_POINTS)
FINEST = 100
"""Budgets are whole hundredths of a per cent, unless they lie closer together."""


@in_grad_turn
@sharing_prepared()
def sweep(
    model: nn.Module,
    example_input: Any,
    *,
    resource: str = "params",
    points: int | Sequence[BudgetLike] = 20,
    limits: tuple[float, float] | None = None,
    budget: BudgetLike | None = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Measure | None = None,
    evaluate_points: int | None = None,
    output: Output | None = None,
    name: str = "",
    **options: Any,
) -> Sweep:
    """Plan for many budgets at once. Candidates are priced and measured once; after that, each budget takes seconds.

    Parameters
    ----------
    model, example_input
        As for `plan`; the model is left untouched.
    resource : str
        The resource to vary: ``"params"``, ``"macs"``, ``"flash"``, ``"fm"``, ``"memory"``, ``"latency"`` or one that
        is registered, of the whole model or, except latency, of a part (``"params(encoder.*)"``).
    points : int or sequence of budgets
        Number of budgets, evenly spaced in their share of the model, from the smallest reachable one to one step below
        the whole model. Or a list of budgets: ``["params<=25%", "params<=50%"]``.
    limits : (float, float), optional
        Smallest and largest budget as shares of the model, such as ``(0.2, 0.8)``, instead of that range.
    budget : str, mapping, sequence or Budget, optional
        Bounds that also apply at every point.
    calibration
        As for `plan`.
    evaluate : callable, optional
        A metric, ``metric(model) -> float``. Plans are then applied one at a time and measured.
    evaluate_points : int, optional
        Number of points to measure, evenly spread; by default all. Measuring takes most of the time of a sweep.
    output : str or Path, optional
        Folder in which the artifact of each point is saved, in a subfolder named after its budget.
    name : str
        The model's name, for the page.
    **options
        Options of the search: the fields of `Search`. The cache also keeps the metrics of the points, so that an
        interrupted sweep resumes. They are identified by model, plan, calibration data, the metric's name, code and
        attributes, its value of the dense model, and all of its data if it is a metric of rankfold's.

    Returns
    -------
    Sweep

    Raises
    ------
    InfeasibleBudget
        If no budget has a plan. Individual budgets without a plan are listed with the reason.
    RankfoldError
        As for `plan`; nothing is written then.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> result = rf.sweep(net, torch.randn(1, 32), points=5)
    >>> losses = [point.predicted_loss for point in result.points]
    >>> losses == sorted(losses, reverse=True)
    True
    """
    search = search_of(options)
    check_range(resource, points, limits)
    resource = find_resource(resource).name
    _check_evaluation(evaluate, evaluate_points)
    fixed = None if budget is None else Budget.parse(budget)
    budgets = None if isinstance(points, int) else [_joined(Budget.parse(one), fixed) for one in points]
    realizing = evaluate is not None or output is not None
    to = None if output is None else Destination.of(output)
    if to is not None:
        check_work(model, evaluate=evaluate, finetune=None, output=to.inside("point"))
    started = time.perf_counter()
    varied = Budget((Bound(resource=resource, value=1.0, relative=True),)) if budgets is None else None
    planner = Planner(model, example_input, search, calibration, fixed, varied, *(budgets or ()))
    if realizing:
        planner.prove()
    metric = None if evaluate is None else as_metric(evaluate)
    realizer = Realizer(
        model=model, example_input=example_input, inventory=planner.inventory, data=planner.data, how=planner.how,
        metric=metric, name=name, spare=planner.spare, timer=planner.timer,
    )  # fmt: skip
    dense = None if metric is None else realizer.value(model)
    if isinstance(points, int):
        budgets = _spread(planner.problem.table(), resource, points, limits, fixed)
    found = [_planned(planner, one) for one in track(budgets or (), "planning")]
    plans = [point.plan for point in found if point.plan is not None]
    if not plans:
        raise InfeasibleBudget(f"none of the {len(found)} budgets has a plan. The last one: {found[-1].reason}")
    timings = {"plans": time.perf_counter() - started}
    if realizing:
        cache = None if search.cache is None else Cache(search.cache)
        found = Family(realizer=realizer, dense=dense, output=to, cache=cache).realized(found, evaluate_points)
        timings["models"] = time.perf_counter() - started - timings["plans"]
    return Sweep(
        resource=resource,
        dense=planner.inventory.total,
        uncounted=planner.inventory.uncounted,
        points=tuple(found),
        model_name=name or type(model).__name__,
        coverage=planner.inventory.summary(),
        strategy=planner.strategy.name,
        proxy=_estimate(plans),
        metric=None if metric is None or dense is None else metric_value(metric, {"dense": dense}),
        measured=planner.estimator.measured,
        timings=timings,
        created=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    )


def _check_evaluation(evaluate: Measure | None, points: int | None) -> None:
    integer(1, optional=True)("evaluate_points", points)
    if points is not None and evaluate is None:
        raise ConfigError(
            f"{spelled('evaluate_points', points)} needs a metric. Pass {spelled('evaluate', Code('rf.top1(loader)'))}."
        )


def check_range(resource: str, points: int | Sequence[BudgetLike], limits: tuple[float, float] | None) -> None:
    """Raise for budgets that cannot be, whatever the model."""
    whole = resource.partition("(")[0]
    if whole not in resource_names("additive", "measured"):
        raise UnknownNameError("sweep resource", whole, resource_names("additive", "measured"))
    find_resource(resource)  # the part can be read
    listed = isinstance(points, Sequence) and not isinstance(points, str) and len(points) > 0
    if is_integer(points):
        COUNT_OF_POINTS("points", points)
    else:
        require(listed, "points", points, "an integer, or a list of budgets such as ['params<=25%', 'params<=50%']")
    if limits is None:
        return
    pair = isinstance(limits, tuple | list) and len(limits) == 2 and all(map(is_number, limits))
    require(
        pair and 0 < limits[0] < limits[1] < 1, "limits", limits, "two increasing shares in (0, 1), such as (0.2, 0.8)"
    )


def _joined(budget: Budget, fixed: Budget | None) -> Budget:
    return budget if fixed is None else Budget((*budget.bounds, *fixed.bounds))


def _spread(
    table: CandidateTable, resource: str, points: int, limits: tuple[float, float] | None, fixed: Budget | None
) -> list[Budget]:
    """Return budgets that are evenly spaced in their share of the model."""
    dense = max(table.total.get(resource), 1)
    least, whole = table.least(resource) / dense, table.cost(()).get(resource) / dense
    if limits is None and least >= whole:
        raise InfeasibleBudget(
            f"no candidate has less {resource} than its layer, so there is nothing to sweep. Vary another resource, or "
            "allow more methods.",
            [(resource, table.total.get(resource) - 1, table.least(resource), table.total.get(resource))],
        )
    low, high = limits or (least, whole - (whole - least) / points)
    # In per cent, rounded up: the least one must stay within reach, and no two budgets become one.
    scale = FINEST if (high - low) / points > 1e-4 else FINEST * 10**4
    shares = [low + (high - low) * i / (points - 1) for i in range(points)]
    shares = [math.ceil(round(share * 100 * scale, 6)) / scale / 100 for share in shares]
    return [_joined(Budget((Bound(resource=resource, value=s, relative=True),)), fixed) for s in shares if s < 1]


def _planned(planner: Planner, budget: Budget) -> SweepPoint:
    """Return the point of one budget; without a plan if there is none."""
    try:
        plan = planner.plan(budget)
    except BudgetError as error:  # out of reach, or already met
        return SweepPoint(budget=str(budget), reason=str(error))
    return SweepPoint(
        budget=str(budget),
        plan=plan,
        cost=planner.pricing.plan_cost(plan),
        predicted_loss=_predicted_loss(planner, plan),
    )


def _estimate(plans: Sequence[Plan]) -> str:
    """Return how the predicted losses of plans are estimated."""
    searches = [plan.provenance.search for plan in plans]
    if any("compared" in search for search in searches):
        return "measurement of the whole network"
    return ", ".join(dict.fromkeys(str(search.get("proxy", "the layers' errors")) for search in searches))


def _predicted_loss(planner: Planner, plan: Plan) -> float:
    """Return the loss that the search measured or predicts, otherwise the sum of the layers' squared relative errors.

    Channels that a layer loses count as lost energy of its weight.
    """
    search = plan.provenance.search
    if "compared" in search:  # plans of several kinds, whose predictions cannot be compared
        return float(search["compared"][search.get("selected", search["proxy"])])
    if "predicted_loss" in search:
        return float(search["predicted_loss"])
    loss, removed = 0.0, plan.narrowing.removed()
    for name, choice in plan.layers.items():
        error, gone = choice.error or 0.0, removed.get(name)
        if gone is None:
            loss += error**2
        else:
            loss += lost_energy(layer_weight(planner.model, name), planner.inventory.layer(name), gone, error)
    return loss
