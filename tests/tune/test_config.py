"""The config says what it means and refuses what cannot be meant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rankfold.errors import ConfigError, RankfoldError, UnknownNameError
from rankfold.tune import FROM_SCRATCH, NORTON, RECIPES, FineTune


def test_defaults() -> None:
    config = FineTune()
    assert (config.epochs, config.loss, config.terms) == (5, "auto", None)
    assert config.layer_weight == 0.5, "RENE's lambda"
    assert (config.peak_lr, config.decay) == (0.02, 1e-4)
    adamw = FineTune(optimizer="adamw")
    assert (adamw.peak_lr, adamw.decay) == (1e-3, 0.01)
    adam = FineTune(optimizer="adam")
    assert (adam.peak_lr, adam.decay) == (1e-4, 0.0)
    assert FineTune(lr=0.3, weight_decay=0.0).peak_lr == 0.3
    assert FineTune(weight_decay=0.0).decay == 0.0


def test_from_scratch_is_the_recipe_of_the_similarity_paper() -> None:
    """Kokhazadeh et al. 2025, section 6."""
    recipe = FROM_SCRATCH
    assert (recipe.epochs, recipe.optimizer, recipe.peak_lr, recipe.decay) == (100, "adam", 1e-4, 0.0)
    assert (recipe.schedule, recipe.plateau_patience, recipe.plateau_factor) == ("plateau", 10, 0.1)
    assert (recipe.warmup, recipe.max_grad_norm) == (0, None)


def test_norton_is_the_recipe_of_the_authors() -> None:
    """Pham, Zniyed & Nguyen 2025, public code: batches of 256, 5 of 400 epochs of warm-up."""
    recipe = NORTON
    assert (recipe.epochs, recipe.optimizer, recipe.peak_lr, recipe.momentum, recipe.decay) == (
        400, "sgd", 0.05, 0.9, 5e-4
    )  # fmt: skip
    assert (recipe.schedule, recipe.warmup * recipe.epochs, recipe.loss) == ("cosine", 5, "task")
    assert (recipe.keep, recipe.max_grad_norm, RECIPES["norton"].batch_size) == ("best", None, 256)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FineTune().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("task", {"task"}),
        ("distill", {"distill"}),
        ("layer", {"layer"}),
        ("task+distill", {"task", "distill"}),
        ("layer + task", {"task", "layer"}),
        ("task+distill+layer", {"task", "distill", "layer"}),
    ],
)
def test_terms(loss: str, terms: set[str]) -> None:
    assert {term.name for term in FineTune(loss=loss).terms or ()} == terms


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"loss": "dist"}, UnknownNameError, "distill"),
        ({"loss": "task+task"}, ConfigError, "different terms"),
        ({"loss": ""}, UnknownNameError, "Choose from"),
        ({"loss": None}, ConfigError, "None"),
        ({"loss": "auto+task"}, UnknownNameError, "auto"),
        ({"task": "mse"}, UnknownNameError, "cross_entropy"),
        ({"task": 3}, UnknownNameError, "cross_entropy"),
        ({"optimizer": "adam-w"}, UnknownNameError, "adamw"),
        ({"schedule": "cos"}, UnknownNameError, "cosine"),
        ({"plateau_patience": -1}, ConfigError, "plateau_patience"),
        ({"plateau_patience": 1.5}, ConfigError, "plateau_patience"),
        ({"plateau_factor": 1.0}, ConfigError, "plateau_factor"),
        ({"plateau_factor": 0}, ConfigError, "plateau_factor"),
        ({"keep": "first"}, UnknownNameError, "best"),
        ({"distill": "l2"}, UnknownNameError, "mse"),
        ({"layer_scale": "rel"}, UnknownNameError, "relative"),
        ({"mixed_precision": "int8"}, UnknownNameError, "bf16"),
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"epochs": 1.5}, ConfigError, "epochs"),
        ({"epochs": True}, ConfigError, "epochs"),
        ({"epochs": None}, ConfigError, "epochs"),
        ({"max_steps": 0}, ConfigError, "max_steps"),
        ({"lr": 0.0}, ConfigError, "lr"),
        ({"lr": float("nan")}, ConfigError, "lr"),
        ({"lr": "0.1"}, ConfigError, "lr"),
        ({"temperature": -1}, ConfigError, "temperature"),
        ({"layer_weight": -0.5}, ConfigError, "layer_weight"),
        ({"weight_decay": float("inf")}, ConfigError, "weight_decay"),
        ({"momentum": 1.0}, ConfigError, "momentum"),
        ({"momentum": 0.0}, ConfigError, "Nesterov"),
        ({"warmup": 1.0}, ConfigError, "warmup"),
        ({"warmup": -1}, ConfigError, "warmup"),
        ({"max_grad_norm": 0}, ConfigError, "max_grad_norm"),
        ({"target": float("nan")}, ConfigError, "target"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"checkpoint_every": 5}, ConfigError, "checkpoint="),
        ({"checkpoint": "x", "checkpoint_every": 0}, ConfigError, "checkpoint_every"),
    ],
)
def test_refused(options: dict[str, Any], kind: type[RankfoldError], said: str) -> None:
    with pytest.raises(kind, match=said):
        FineTune(**options)
