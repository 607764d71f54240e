"""Figures are reported of the model that an artifact gives, after a proof that its layers run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.errors import InfeasibleBudget
from rankfold.records import Budget, Cost, Plan
from rankfold.storage import artifact_bytes, load, save


def reloaded(
    small: nn.Module, dense: nn.Module, example_input: Any, *, plan: Plan | None = None
) -> tuple[nn.Module, int]:
    """Save a compressed model to a temporary folder and load it again.

    Nothing is written to the output folder, so a model that is refused leaves no files.

    Parameters
    ----------
    small, dense : Module
        The compressed model and its original.
    example_input : object
        What the loaded model is proved on (`rankfold.surgery.Proof`).
    plan : Plan, optional
        As for `save`.

    Returns
    -------
    Module
        The loaded model.
    int
        The size of its plan and weights in bytes.

    Raises
    ------
    ModelError
        If the loaded model does not run the loaded layers.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(small, Path(temporary) / "artifact", plan=plan)
        return load(folder, dense, example_input=example_input), artifact_bytes(folder)


def check_kept(budget: Budget | None, built: Cost, dense: Cost) -> None:
    """Raise `InfeasibleBudget` if a built model exceeds a bound that its plan meets.

    Parameters
    ----------
    budget : Budget or None
        Its bounds on resources that add up over layers are checked.
    built, dense : Cost
        Of the compressed model, measured, and of the original.
    """
    for bound in () if budget is None else budget.exceeded(built, dense):
        raise InfeasibleBudget(
            f"the compressed model exceeds {str(bound)!r}: it has {built.get(bound.resource):,} {bound.resource}, and "
            f"the limit is {bound.limit(dense):,}. The plan predicts less: other operations may depend on the layers. "
            "Loosen the bound, or bound other resources."
        )
