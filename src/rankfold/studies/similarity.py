"""The studies of "Efficient CNN compression via multi-method low rank factorization and feature map similarity"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import cast

from rankfold.candidates import DEFAULT_PAIR
from rankfold.records import ACCURACY, Bound, Budget
from rankfold.reporting import words
from rankfold.reporting.studies import Study, Trial
from rankfold.strategies import Similarity
from rankfold.studies.paper import Paper, Setup
from rankfold.tune import finetune

METHODS = ("tucker", "cp", "tt", "svd", "qr", "ttm")
STEP_SIZES, MAX_SOL = (0.02, 0.05, 0.1), (1, 3, 10)


def pairs(setup: Setup) -> Study:
    """Compare all pairs of factorizations and their hybrid (Figs 9, 10, 13 and 14), and the global search."""

    def rival() -> Iterator[Trial]:
        bound = Bound(resource=ACCURACY, value=setup.drop, relative=False)
        yield setup.trial("compressnas", setup.compress("compressnas", budget=Budget((bound,))))

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

    epoch = finetune(setup.model, replace(setup.recipe, epochs=1, target=None, keep="last"), teacher=setup.model)
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
    """Compare with other ways to select ranks for the same layers (Fig. 15)."""

    def trials() -> Iterator[Trial]:
        result = setup.compress(_strategy(setup, step_size=0.05, max_sol=3), methods=DEFAULT_PAIR)
        for row in setup.runs(result):
            yield replace(row, name="similarity")
        targets = list(result.report.rounds[0].settings)
        yield setup.trial("vbmf", setup.compress("vbmf", methods=DEFAULT_PAIR, include=targets))

    return setup.study(
        "baselines",
        "Baselines with the same target layers and fine-tuning (Fig. 15)",
        {"similarity": trials},
        notes=["Filter pruning, the other baseline of the paper, is not available in rankfold."],
    )


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
    studies={study.__name__: study for study in (pairs, steps, finetuning, baselines)},
)
