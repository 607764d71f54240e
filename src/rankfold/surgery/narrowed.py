"""Narrowed copies of models, proved to run their own layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from rankfold.inventory import Spare
from rankfold.records import Narrowing
from rankfold.surgery.exchange import exchange_
from rankfold.surgery.narrowing import narrow_
from rankfold.surgery.proof import Proof


def narrowed_copy(
    model: nn.Module, narrowing: Narrowing, example_input: Any = None, *, spare: Spare | None = None
) -> nn.Module:
    """Return a copy of a model without some channels.

    Parameters
    ----------
    model : Module
        The original; left unchanged.
    narrowing : Narrowing
        What to remove.
    example_input : object, optional
        What to prove the copy on (`Proof`). Without it, only visible references to the original's layers are checked.
    spare : Spare, optional
        The copy to change.

    Raises
    ------
    PlanMismatch
        If the narrowing does not fit the model.
    ModelError
        If the copy would still run layers of the original.
    """
    proof = None if example_input is None else Proof(model, (), example_input)
    suspects: list[str] | None = None if proof is None else []
    copied = (spare or Spare(model, instead="rankfold.apply_ with a plan")).give()
    exchange_(copied, {}, original=model, suspects=suspects)
    narrow_(copied, narrowing)
    if proof is not None:
        proof.check(copied, suspects or ())
    return copied
