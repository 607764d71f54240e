"""The loss as one module: what a wrapper for several processes has to see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._tensors import copied, detached
from rankfold.batches import call_model
from rankfold.errors import ConfigError, DataError, ModelError
from rankfold.inventory import KeptState, fused_attention_off, without_gradients
from rankfold.tune.config import TERMS, FineTune, Term
from rankfold.tune.layers import LayerDistillation
from rankfold.tune.losses import cross_entropy, distillation


def resolve_terms(terms: frozenset[Term] | None, *, has_labels: bool, has_teacher: bool) -> frozenset[Term]:
    """Return the terms to minimise; None stands for ``"auto"``.

    Raises
    ------
    DataError
        If a term needs labels and there are none, or nothing can be minimised.
    ConfigError
        If a term needs a teacher and there is none.
    """
    if terms is None:
        if not has_labels and not has_teacher:
            raise DataError(
                "there is nothing to learn from: the data has no labels and there is no teacher. "
                "Give batches as (inputs, target), or the original network as teacher."
            )
        found: dict[Term, bool] = {"task": has_labels, "distill": has_teacher}
        return frozenset(term for term, possible in found.items() if possible)
    require_teacher(terms, has_teacher=has_teacher)
    if "task" in terms and not has_labels:
        raise DataError(
            f"loss={'+'.join(t for t in TERMS if t in terms)!r} needs labels, but the batches have "
            "none. Give batches as (inputs, target), or choose loss='distill', which learns from "
            "the original network without labels."
        )
    return terms


def require_teacher(terms: frozenset[Term] | None, *, has_teacher: bool) -> None:
    """Raise `ConfigError` if a term needs a teacher that is not there."""
    missing = [t for t in ("distill", "layer") if terms and t in terms and not has_teacher]
    if missing:
        raise ConfigError(
            f"the loss term {missing[0]!r} learns from the original network. Give it as teacher=, "
            "or choose loss='task'."
        )


class Objective(nn.Module):
    """The loss of one batch, a mean over its samples.

    It is a module, and the student its child, so that DistributedDataParallel sees which parameters
    a loss reaches (layer distillation alone does not reach a classifier) and mixed precision
    covers both networks and nothing of the user's own modules is wrapped or patched.

    Parameters
    ----------
    student : nn.Module
        The model that is trained.
    teacher : nn.Module or None
        Runs without gradients. Not a child, so it is neither trained nor stored.
    config : FineTune
        The terms and their weights.
    reduce : callable
        Sums a tensor over all processes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        config: FineTune,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.terms = config.terms
        self._layers: LayerDistillation | None = None
        if teacher is not None and self.terms is not None and "layer" in self.terms:
            self._layers = LayerDistillation(student, teacher, scale=config.layer_scale, reduce=reduce)
            teacher = self._layers.teacher
        self._teacher = (teacher,)  # in a tuple: torch does not see it
        self._kept = None if teacher is None else KeptState(teacher)

    def close(self) -> None:
        """Take the hooks off both networks."""
        if self._layers is not None:
            self._layers.close()

    def forward(self, inputs: Any, target: Any, samples: int, total: int, active: bool) -> tuple[Tensor, Tensor]:
        """Return the loss and, detached and unweighted, its terms in the order of `TERMS`.

        Parameters
        ----------
        inputs, target : object
            This process's share of the batch.
        samples, total : int
            Samples in it, and in the whole batch.
        active : bool
            False if this process's share is empty and it only keeps the others company.
        """
        terms, config, (teacher,) = self.terms, self.config, self._teacher
        assert terms is not None
        theirs: Any = None
        if self._layers is not None:
            self._layers.begin(samples, total)
        if teacher is not None and self._kept is not None and terms & {"distill", "layer"}:
            # The fused path of torch's attention calls no layer that could be listened to.
            quiet = fused_attention_off() if self._layers is not None else nullcontext()
            with without_gradients(self._kept.parameters), quiet:
                theirs = detached(call_model(teacher, copied(detached(inputs))))
            self._kept.reset()
        if self._layers is not None:
            self._layers.after_teacher(active)
        outputs = call_model(self.student, inputs)
        found: dict[Term, tuple[float, Tensor]] = {}
        if "task" in terms:
            found["task"] = (config.task_weight, self._task(outputs, target))
        if "distill" in terms:
            kind, temperature = config.distill, config.temperature
            term = distillation(outputs, theirs, kind=kind, temperature=temperature)
            found["distill"] = (config.distill_weight, term)
        if self._layers is not None:
            found["layer"] = (config.layer_weight, self._layers.term())
        loss = torch.stack([weight * term for weight, term in found.values()]).sum()
        zero = torch.zeros_like(loss)
        parts = [found[name][1].detach() if name in found else zero for name in TERMS]
        return loss, torch.stack([part.to(loss.dtype) for part in parts]).detach()

    def _task(self, outputs: Any, target: Any) -> Tensor:
        if not callable(self.config.task):
            return cross_entropy(outputs, target)
        loss = self.config.task(outputs, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"the task loss must return a tensor with one number, the mean over the batch. Got {got} instead."
            )
        return loss.reshape(())
