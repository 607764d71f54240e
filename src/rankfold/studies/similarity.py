"""The studies of "Efficient CNN compression via multi-method low rank factorization and feature map similarity"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import cast

from rankfold import methods
from rankfold.api.planning import plan
from rankfold.api.realizing import Result
from rankfold.candidates import DEFAULT_PAIR
from rankfold.cost import Pricing
from rankfold.records import ACCURACY, Bound, Budget, Narrowing, Plan
from rankfold.reporting import words
from rankfold.reporting.studies import Study, Trial
from rankfold.strategies import Prune, Similarity
from rankfold.studies.paper import Paper, Setup
from rankfold.tune import finetune

METHODS = ("tucker", "cp", "tt", "svd", "qr", "ttm")
STEP_SIZES, MAX_SOL = (0.02, 0.05, 0.1), (1, 3, 10)
CRITERIA = ("l1", "l2", "geometric_median")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of the filters of the last convolution."""


def pairs(setup: Setup) -> Study:
    """Compare all pairs of factorizations and their hybrid (Figs 9, 10, 13 and 14), and the global search."""

    def rival() -> Iterator[Trial]:
        yield setup.trial("compressnas", setup.compress("compressnas", budget=_within(setup)))

    return setup.study(
        "pairs",
        "Pairs of factorizations and their hybrid (Figs 9, 10, 13, 14)",
        {"similarity": lambda: _similar(setup, setup.methods or METHODS), "compressnas": rival},
        notes=[
            "compressnas: the global search with its default options, within the same drop and with the same "
            "fine-tuning."
        ],
    )


def steps(setup: Setup) -> Study:
    """Vary the step size and the number of solutions per step (Figs 11 and 12)."""

    def trials(step_size: float, max_sol: int) -> Iterator[Trial]:
        rows = list(_similar(setup, setup.methods or DEFAULT_PAIR, step_size=step_size, max_sol=max_sol))
        for row in rows:
            setting = f"{words.percent(step_size)}, {max_sol}"
            yield replace(row, name=setting if len(rows) == 1 else f"{row.name} {setting}")

    methods = ", ".join(setup.methods or DEFAULT_PAIR)
    return setup.study(
        "steps",
        "Step size and solutions per step (Figs 11, 12)",
        {f"{words.percent(s)}, {m}": partial(trials, s, m) for s, m in product(STEP_SIZES, MAX_SOL)},
        notes=[f"Rows: step_size, max_sol; methods {methods}."],
    )


def finetuning(setup: Setup) -> Study:
    """Compare fine-tuning once per round with fine-tuning after each layer (Fig. 17)."""

    def trials(name: str, *, one_shot: bool) -> Iterator[Trial]:
        for row in _similar(setup, DEFAULT_PAIR, one_shot=one_shot):
            yield replace(row, name=name)

    epoch = finetune(
        setup.model, replace(setup.recipe, epochs=1, target=None, keep="last", validate=None), teacher=setup.model
    )
    return setup.study(
        "finetuning",
        "One-shot against iterative fine-tuning (Fig. 17)",
        {
            "one-shot": partial(trials, "one-shot", one_shot=True),
            "iterative": partial(trials, "iterative", one_shot=False),
        },
        notes=[
            "The overhead is the time outside of training: applying plans, measuring the metric and comparing feature "
            "maps. Its unit is one epoch of the original with the same recipe, "
            f"{words.seconds(epoch.history[0].seconds)}."
        ],
        epoch_seconds=epoch.history[0].seconds,
    )


def baselines(setup: Setup) -> Study:
    """Compare with other ways to select ranks for the same layers, and with filter pruning (Fig. 15)."""

    def trials() -> Iterator[Trial]:
        result, rows = _reference(setup)
        yield from rows
        targets = list(result.report.rounds[0].settings)
        yield setup.trial("vbmf", setup.compress("vbmf", methods=DEFAULT_PAIR, include=targets))

    def pruned(criterion: str) -> Iterator[Trial]:
        yield setup.trial(f"pruning, {criterion}", setup.compress(Prune(criterion=criterion), budget=_within(setup)))

    return setup.study(
        "baselines",
        "Baselines with the same fine-tuning (Fig. 15)",
        {"similarity": trials, **{f"pruning, {criterion}": partial(pruned, criterion) for criterion in CRITERIA}},
        notes=[
            "vbmf: the layers of similarity. Pruning: one share of the filters of all convolutions and of the neurons "
            "of all linear layers, the largest within the drop."
        ],
    )


def pruning(setup: Setup) -> Study:
    """Remove filters of the last convolution of the factored network (Fig. 16).

    They are also the inputs of the first linear layer. Each network is factored by the plan of ``similarity``, with
    ranks lowered to what the narrow layers have, and fine-tuned.
    """
    shares = {f"{words.percent(share)} fewer filters": share for share in SHARES}
    found: list[Plan] = []
    tried = [Narrowing()]

    def factored() -> Iterator[Trial]:
        result, rows = _reference(setup)
        found.append(result.plan)
        yield from rows

    def narrow(name: str, share: float) -> Iterator[Trial]:
        last = [layer.name for layer in setup.inventory if layer.kind == "conv"][-1]
        strategy = Prune(ratio={last: share}, criterion="l2")
        narrowing = plan(setup.model, setup.example_input, strategy=strategy).narrowing
        if narrowing not in tried:  # few filters have few shares
            tried.append(narrowing)
            yield setup.trial(name, setup.realize(_narrowed(setup, found[0], narrowing)))

    return setup.study(
        "pruning",
        "Filter pruning of the last convolution, after factorization (Fig. 16)",
        {"similarity": factored, **{name: partial(narrow, name, share) for name, share in shares.items()}},
        notes=["The filters of the smallest norm are removed, and with them inputs of the next layer."],
    )


def _narrowed(setup: Setup, chosen: Plan, narrowing: Narrowing) -> Plan:
    """Return a plan with a narrowing, and ranks that are possible in the narrow layers."""
    narrow = Pricing.of(setup.inventory).narrowed(narrowing).inventory
    layers = {
        name: replace(choice, ranks=tuple(map(min, choice.ranks, most)))
        for name, choice in chosen.factored.items()
        for most in [methods.get(choice.method or "", choice.options).max_ranks(narrow.layer(name))]
    }
    return replace(chosen.override(layers), narrowing=narrowing)


def _within(setup: Setup) -> Budget:
    """Return the bound on the drop of the metric, for strategies that take it as a budget."""
    return Budget((Bound(resource=ACCURACY, value=setup.drop, relative=False),))


def _reference(setup: Setup) -> tuple[Result, list[Trial]]:
    """Return the result of the paper's step and solutions (Figs 15 and 16), and its rows under the strategy's name."""
    result = setup.compress(_strategy(setup, step_size=0.05, max_sol=3), methods=DEFAULT_PAIR)
    return result, [replace(row, name="similarity") for row in setup.runs(result)]


def _similar(setup: Setup, methods: tuple[str, ...], **options: object) -> Iterator[Trial]:
    yield from setup.runs(setup.compress(_strategy(setup, **options), methods=methods))


def _strategy(setup: Setup, **options: object) -> Similarity:
    return replace(cast("Similarity", setup.strategy), drop=setup.drop, **options)


PAPER = Paper(
    name="similarity",
    citation="Kokhazadeh et al. (2025), Efficient CNN compression via multi-method low rank factorization and feature "
    "map similarity",
    strategy="similarity",
    network="lenet5_mnist5k",
    weights="bundled",
    data="mnist5k",
    studies={study.__name__: study for study in (pairs, steps, finetuning, baselines, pruning)},
)
