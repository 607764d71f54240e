"""The studies of the RENE paper (Aghababaei-Harandi & Amini 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

from rankfold import methods
from rankfold.candidates import DEFAULT_TRAIN
from rankfold.cost import Pricing
from rankfold.errors import ConfigError, InfeasibleBudget
from rankfold.records import Bound, Budget, Candidate
from rankfold.reporting import words
from rankfold.reporting.studies import Study, Trial
from rankfold.strategies import RENE, Manual
from rankfold.studies.paper import Paper, Setup
from rankfold.tune import finetune

SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Shares of the parameters in Fig. 4."""
BETAS = (1.0, 0.8, 0.6, 0.4, 0.2)
BUDGETS = (0.75, 0.5, 0.25)
LINEAR = "svd"
"""Factorization of linear layers next to one of convolutions."""


def ranks(setup: Setup) -> Study:
    """Compare one rank for all layers with searched ranks of the same number of parameters (Fig. 4)."""
    chosen = setup.methods or DEFAULT_TRAIN

    def trials(name: str, strategy: Callable[[], Manual | RENE], share: float) -> Iterator[Trial]:
        result = setup.compress(strategy(), methods=chosen, budget=_params(share), data_aware=False)
        yield replace(setup.trial(name, result), before=result.report.metrics[0].compressed)

    rows: dict[str, Callable[[], Iterator[Trial]]] = {}
    for share in SHARES:
        amount = words.percent(share)
        rows[f"manual {amount}"] = partial(trials, f"manual {amount}", partial(one_rank, setup, chosen, share), share)
        rows[f"rene {amount}"] = partial(trials, f"rene {amount}", partial(_strategy, setup), share)
    return setup.study(
        "ranks",
        "Manual and searched ranks (Fig. 4)",
        rows,
        notes=[
            f"manual: the largest rank that all layers can have within this share of the parameters; rene: searched "
            f"ranks within the same share; methods {', '.join(chosen)}."
        ],
    )


def distribution(setup: Setup) -> Study:
    """Compare the ranks of the layers that a budget gives with several factorizations (Fig. 5)."""

    def trials(name: str) -> Iterator[Trial]:
        result = _untrained(setup, _strategy(setup), methods=_with_linear(name), budget=setup.budget)
        rows = {row.name: row.ranks for row in result.report.layers if row.ranks}
        yield replace(setup.trial(name, result), ranks=rows)

    return setup.study(
        "distribution",
        "Distribution of the ranks (Fig. 5)",
        {name: partial(trials, name) for name in setup.methods or ("tt", "cp")},
        notes=[f"Budget {setup.budget}. Not fine-tuned."],
    )


def tradeoff(setup: Setup) -> Study:
    """Vary beta without a budget, and the budget, which sets the scale of the rank loss (section 4.3)."""
    chosen = setup.methods or DEFAULT_TRAIN

    def trials(name: str, strategy: RENE, budget: Budget | None) -> Iterator[Trial]:
        result = _untrained(setup, strategy, methods=chosen, budget=budget)
        search = result.plan.provenance.search
        label = name if budget is None else f"{name}, scale {search['scale']:.3g}"
        yield replace(setup.trial(label, result), loss=float(search["loss"]))

    strategy = _strategy(setup)
    rows = {f"beta {beta:g}": partial(trials, f"beta {beta:g}", replace(strategy, beta=beta), None) for beta in BETAS}
    for share in BUDGETS:
        rows[words.percent(share)] = partial(trials, words.percent(share), strategy, _params(share))
    return setup.study(
        "tradeoff",
        "Trade-off between ranks and errors (section 4.3)",
        rows,
        notes=[
            "beta: no budget; a larger beta makes rank more expensive. Percentages: budget on the parameters, with the "
            "scale of the rank loss that meets it. Loss: the decomposition loss of the plan. Not fine-tuned; methods "
            f"{', '.join(chosen)}."
        ],
    )


def double(setup: Setup) -> Study:
    """Distil the model into a student, then compress both (Table 3)."""
    student = setup.student
    if student is None:
        raise ConfigError("the study 'double' needs a student. Pass --student, such as resnet20_cifar10.")
    chosen = setup.methods or DEFAULT_TRAIN
    recipe = replace(
        setup.recipe, loss="auto", epochs=student.epochs, checkpoint=setup.cache / "student.pt", keep="last",
        target=None, validate=None,
    )  # fmt: skip
    pupil = replace(setup, model=student.model)
    distilled: list[Setup] = []

    def own() -> Iterator[Trial]:
        yield Trial(name="student", parts=pupil.parts(), metric=pupil.dense.dense, drop=0.0, seconds={})

    def learn() -> Iterator[Trial]:
        setup.cache.mkdir(parents=True, exist_ok=True)
        metric = setup.metric if recipe.uses_metric else None
        tuned = finetune(student.model, recipe, teacher=setup.model, metric=metric)
        distilled.append(replace(setup, model=tuned.model.eval()))
        seconds = {"finetune": sum(epoch.seconds for epoch in tuned.history)}
        yield Trial(
            name="student, distilled", parts=pupil.parts(), metric=distilled[0].dense.dense, drop=0.0, seconds=seconds
        )

    def compressed(name: str, subject: Callable[[], Setup]) -> Iterator[Trial]:
        one = subject()
        result = one.compress(_strategy(setup), methods=chosen, budget=setup.budget, data_aware=False)
        yield replace(one.trial(name, result), before=result.report.metrics[0].compressed)

    study = setup.study(
        "double",
        "Double compression (Table 3)",
        {
            **({"student": own} if student.trained else {}),
            "student, distilled": learn,
            "teacher, rene": partial(compressed, "teacher, rene", lambda: setup),
            "student, rene": partial(compressed, "student, rene", lambda: distilled[0]),
        },
        notes=[
            f"Original: the teacher. Student: {student.name}, distilled in {student.epochs} epochs. Budget of both: "
            f"{setup.budget}. Reductions and changes refer to the teacher."
        ],
    )
    rows = [replace(trial, drop=replace(setup.dense, tuned=trial.metric).drop or 0.0) for trial in study.trials]
    return replace(study, trials=tuple(rows))


def one_rank(setup: Setup, chosen: tuple[str, ...], share: float) -> Manual:
    """Return the largest rank that all layers can have within a share of the model's parameters.

    Each layer takes the first method that supports it, and its largest rank where that is smaller. Layers that this
    rank does not make smaller are kept.

    Raises
    ------
    InfeasibleBudget
        If rank 1 exceeds the share.
    """
    pricing = Pricing.of(setup.inventory)
    total, given = pricing.inventory.total, [methods.get(name) for name in chosen]
    axes = [
        (layer, method)
        for layer in pricing.inventory.compressible
        if (method := next((m for m in given if m.supports(layer) is None), None)) is not None
    ]

    def fitting(rank: int) -> dict[str, Candidate]:
        candidates = [
            pricing.candidate(layer, method, tuple(min(rank, most) for most in method.max_ranks(layer)))
            for layer, method in axes
        ]
        return {c.layer: c for c in candidates if pricing.is_smaller(c)}

    def params(rank: int) -> int:
        return pricing.total_with({name: c.cost for name, c in fitting(rank).items()}).params

    low, high = 0, max((max(method.max_ranks(layer)) for layer, method in axes), default=0)
    while low < high:  # the largest rank that fits: a larger rank never has fewer parameters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if params(middle) <= share * total.params else (low, middle - 1)
    if low == 0:
        least = params(1)
        raise InfeasibleBudget(
            f"rank 1 in all layers keeps {words.percent(least / total.params)} of the parameters",
            [("params", int(share * total.params), least, total.params)],
        )
    return Manual(layers={name: (c.method, c.ranks) for name, c in fitting(low).items()})


def _untrained(setup: Setup, strategy: RENE, **options: Any) -> Any:
    return setup.compress(strategy, finetune=None, data_aware=False, **options)


def _with_linear(name: str) -> tuple[str, ...]:
    return (name,) if name == LINEAR else (name, LINEAR)


def _params(share: float) -> Budget:
    return Budget((Bound(resource="params", value=share, relative=True),))


def _strategy(setup: Setup) -> RENE:
    return cast("RENE", setup.strategy)


PAPER = Paper(
    name="rene",
    citation="Aghababaei-Harandi & Amini (2024), Unified framework for pre-trained neural network compression via "
    "decomposition and optimized rank selection",
    strategy="rene",
    network="lenet5_mnist5k",
    weights="bundled",
    data="mnist5k",
    studies={study.__name__: study for study in (ranks, distribution, tradeoff, double)},
    budget="params<=28%",
    student="lenet5_half_mnist5k",
)
