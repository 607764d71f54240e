"""``sweep``: plans for a whole range of budgets, and a family of models, from one table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from rankfold._config import is_integer, is_number, require
from rankfold._grad_mode import trainable
from rankfold._progress import track
from rankfold._turns import in_turn
from rankfold.api.applying import Reconstruct, SequentialOptions, check_reconstruct
from rankfold.api.checks import BudgetLike, check_compressible, check_counted, check_measurable, check_options, reusable
from rankfold.api.family import Family
from rankfold.api.planning import Planner
from rankfold.calibration import collect_moments
from rankfold.candidates.cache import Cache
from rankfold.cost import Pricing
from rankfold.errors import BudgetError, ConfigError, InfeasibleBudget, UnknownNameError
from rankfold.evaluation import evaluate as measure
from rankfold.evaluation import metric_name
from rankfold.inventory import copy_model, inspect
from rankfold.records import Bound, Budget, CandidateTable, resource_names
from rankfold.reporting import MetricValue
from rankfold.reporting.sweep import Sweep, SweepPoint
from rankfold.storage import check_output
from rankfold.storage.state import check_state
from rankfold.surgery import Proof

MOST_POINTS = 1000
FINEST = 100
"""Budgets are whole hundredths of a per cent, unless they lie closer together."""


@in_turn
@trainable
def sweep(
    model: nn.Module,
    example_input: Any,
    *,
    resource: str = "params",
    points: int = 20,
    limits: tuple[float, float] | None = None,
    budgets: Sequence[BudgetLike] | None = None,
    budget: BudgetLike | None = None,
    strategy: str = "compressnas",
    config: Mapping[str, Any] | None = None,
    methods: str | Sequence[str] | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Iterable[Any] | None = None,
    data_aware: bool = True,
    reconstruct: Reconstruct | None = None,
    sequential: SequentialOptions | None = None,
    include: str | type | Sequence[str | type] | None = None,
    exclude: str | type | Sequence[str | type] | None = None,
    keep_first_last: bool = False,
    overrides: Mapping[str, Any] | None = None,
    rank_multiple: int | None = None,
    gauge: bool = False,
    storage: str | None = None,
    cache: str | Path | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_points: int | None = None,
    output: str | Path | None = None,
    name: str = "",
    seed: int = 0,
) -> Sweep:
    """Plan for many budgets at once: candidates are priced and measured once, each budget is then a matter of a moment.

    Parameters
    ----------
    model, example_input
        As for `plan`; the model is left untouched.
    resource : {"params", "macs", "flash", "fm", "memory"}
        What is varied.
    points : int
        How many budgets: evenly spaced in their share of the model, from the least that can be reached up to one step
        below the whole model.
    limits : (float, float), optional
        The shares that the budgets lie between, both included, in the place of that range: ``(0.2, 0.8)``.
    budgets : sequence of str, mapping or Budget, optional
        The budgets themselves, in the place of `points` and `limits`.
    budget : str, mapping, sequence or Budget, optional
        Bounds that hold at every point besides.
    strategy, config, methods, method_options, calibration, data_aware
        As for `plan`.
    include, exclude, keep_first_last, overrides, rank_multiple, gauge, storage, seed
        As for `plan`.
    reconstruct, sequential
        As for `compress`: how factors are found where a plan is applied, for `evaluate` and `output`.
    cache : str or Path, optional
        As for `plan`. The metrics of the points are kept there too, so that a sweep that was killed resumes. They are
        known by model, plan, calibration data, the metric's name, code and attributes, its value of the dense model,
        and all of its data if it is a metric of rankfold's.
    evaluate : callable, optional
        A metric, ``metric(model) -> float``. Plans are then applied one at a time and measured.
    evaluate_points : int, optional
        How many points are measured, spread evenly; by default all. Measuring takes most of the time of a sweep.
    output : str or Path, optional
        Folder that gets an artefact of every point, in a folder named after its budget.
    name : str
        The model's name, for the page.

    Returns
    -------
    Sweep

    Raises
    ------
    InfeasibleBudget
        If not one of the budgets has a plan. Single ones that have none are listed with the reason.
    RankfoldError
        As for `plan`; nothing is written then.

    Examples
    --------
    >>> import torch, rankfold as rf
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    >>> found = rf.sweep(net, torch.randn(1, 32), points=5)
    >>> damages = [point.damage for point in found.points]
    >>> damages == sorted(damages, reverse=True)
    True
    """
    check_options(
        budget=budget, strategy=strategy, config=config, methods=methods, method_options=method_options,
        overrides=overrides, rank_multiple=rank_multiple, gauge=gauge, storage=storage, seed=seed,
    )  # fmt: skip
    check_range(resource, points, limits)
    fixed = None if budget is None else Budget.parse(budget)
    asked = None if budgets is None else _explicit(budgets, fixed)
    require(
        evaluate_points is None or (is_integer(evaluate_points) and evaluate_points >= 1),
        "evaluate_points", evaluate_points, "an integer >= 1, or None for all",
    )  # fmt: skip
    if evaluate_points is not None and evaluate is None:
        raise ConfigError(f"evaluate_points is {evaluate_points}, but there is no metric. Pass evaluate=....")
    mode, options = check_reconstruct(reconstruct, calibration is not None, sequential)
    if reconstruct is None and not data_aware:
        mode = "weights"
    realizing = evaluate is not None or output is not None
    if output is not None:
        check_output(Path(output) / "point")
        check_state(model)
    started = time.perf_counter()
    inspected = inspect(model, example_input, include=include, exclude=exclude, keep_first_last=keep_first_last)
    resources = [resource, *(name for one in (*(asked or ()), fixed) if one is not None for name in one.resources)]
    pricing = Pricing.of(inspected, deploy_dtype=storage, gauge=gauge, resources=resources)
    inventory = pricing.inventory
    check_compressible(inventory)
    varied = Budget((Bound(resource=resource, value=1.0, relative=True),)) if asked is None else None
    check_counted(inventory, fixed, varied, *(asked or ()))
    if realizing:  # a model whose copy runs the original is refused early
        Proof(model, (), example_input).check(copy_model(model, instead="rankfold.apply_ with a plan"))
    batches = reusable(calibration, example_input)
    dense = None if evaluate is None else measure(model, evaluate)
    moments = None
    if batches is not None and data_aware:
        moments = collect_moments(model, batches, inventory.compressible)
    planner = Planner(
        model, inspected, moments, batches, example_input=example_input, strategy=strategy, config=config,
        methods=methods, method_options=method_options, overrides=overrides, rank_multiple=rank_multiple, gauge=gauge,
        storage=storage, cache=cache, seed=seed, resources=resources,
    )  # fmt: skip
    if asked is None:
        asked = _spread(planner.problem.table(), resource, points, limits, fixed)
    found = [_planned(planner, one) for one in track(asked, "planning")]
    plans = [point.plan for point in found if point.plan is not None]
    if not plans:
        raise InfeasibleBudget(f"not one of {len(found)} budgets has a plan. The last one: {found[-1].reason}")
    timings = {"plans": time.perf_counter() - started}
    if realizing:
        if mode == "data" and moments is None and batches is not None:  # the plans were made without
            moments = collect_moments(model, batches, inventory.compressible)
        family = Family(
            model=model, batches=batches, moments=moments, mode=mode, sequential=options, evaluate=evaluate,
            dense=dense, output=output, example_input=example_input, pricing=pricing,
            cache=None if cache is None else Cache(cache),
        )  # fmt: skip
        found = family.realized(found, evaluate_points)
        timings["models"] = time.perf_counter() - started - timings["plans"]
    return Sweep(
        resource=resource,
        dense=inventory.total,
        uncounted=inventory.uncounted,
        points=tuple(found),
        model_name=name or type(model).__name__,
        coverage=inventory.summary(),
        strategy=strategy,
        proxy=str(plans[0].provenance.search.get("proxy", "the layers' errors")),
        metric=None
        if evaluate is None or dense is None
        else MetricValue(
            name=metric_name(evaluate), dense=dense, higher_is_better=getattr(evaluate, "higher_is_better", True)
        ),
        measured=planner.judge.measured,
        timings=timings,
        created=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    )


def check_range(resource: str, points: int, limits: tuple[float, float] | None) -> None:
    """Raise for a range of budgets that cannot be, whatever the model."""
    if resource not in resource_names("additive"):
        raise UnknownNameError("resource of a sweep", resource, resource_names("additive"))
    require(is_integer(points) and 2 <= points <= MOST_POINTS, "points", points, f"an integer in 2..{MOST_POINTS}")
    if limits is None:
        return
    pair = isinstance(limits, tuple | list) and len(limits) == 2 and all(map(is_number, limits))
    require(
        pair and 0 < limits[0] < limits[1] < 1, "limits", limits, "two growing shares in (0, 1), such as (0.2, 0.8)"
    )


def _explicit(budgets: Sequence[BudgetLike], fixed: Budget | None) -> list[Budget]:
    """Return the budgets with the fixed bounds added."""
    listed = isinstance(budgets, Sequence) and not isinstance(budgets, str) and len(budgets) > 0
    require(listed, "budgets", budgets, "a list of budgets, such as ['params<=25%', 'params<=50%']")
    parsed = [_joined(Budget.parse(one), fixed) for one in budgets]
    for one in parsed:
        check_measurable(one)
    return parsed


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
    except BudgetError as error:  # not to be met, or met by the model as it is
        return SweepPoint(budget=str(budget), reason=str(error))
    search = plan.provenance.search
    errors = sum((choice.error or 0.0) ** 2 for choice in plan.factored.values())
    return SweepPoint(
        budget=str(budget),
        plan=plan,
        cost=planner.problem.pricing.plan_cost(plan),
        damage=float(search.get("damage", errors)),
    )
