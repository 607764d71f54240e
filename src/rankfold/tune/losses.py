"""Loss terms on outputs: the task loss, and distillation of the teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rankfold._config import Code, spelled
from rankfold.errors import DataError, ModelError
from rankfold.outputs import IGNORED, class_axis, class_scores, require_classes
from rankfold.tune.config import FineTune
from rankfold.tune.terms import WRONG_TEACHER, Step, Term, terms

_TASK = Code("callable(outputs, target)")


@dataclass(kw_only=True, eq=False)
class Task(Term):
    """The loss on labels: `cross_entropy`, or a callable of the outputs and the target."""

    name = "task"
    needs_labels = True
    task: Literal["cross_entropy"] | Callable[[Any, Any], Tensor] = "cross_entropy"
    weight: float = 1.0

    @classmethod
    def of(cls, config: FineTune) -> Self:
        """Return the term of a config."""
        return cls(task=config.task, weight=config.task_weight)

    def loss(self, step: Step) -> Tensor:
        """Return the mean over the samples."""
        compute = self.task if callable(self.task) else cross_entropy
        return compute(step.outputs, step.target)


@dataclass(kw_only=True, eq=False)
class Distill(Term):
    """The distance of the outputs from the teacher's; see `distillation`."""

    name = "distill"
    needs_teacher = True
    kind: Literal["kl", "mse"] = "kl"
    temperature: float = 4.0
    weight: float = 1.0

    @classmethod
    def of(cls, config: FineTune) -> Self:
        """Return the term of a config."""
        return cls(kind=config.distill, temperature=config.temperature, weight=config.distill_weight)

    def loss(self, step: Step) -> Tensor:
        """Return the mean over the samples."""
        return distillation(step.outputs, step.teacher_outputs, kind=self.kind, temperature=self.temperature)


terms.register(Task, summary="the labels' loss")
terms.register(Distill, summary="the original network's outputs as soft labels")


def cross_entropy(outputs: Any, target: Any) -> Tensor:
    """Return the mean cross-entropy, with the classes along dimension 1 as in torch.

    Raises
    ------
    DataError
        If the target does not fit the logits.
    """
    scores = class_scores(outputs, dims=1).float()
    if not isinstance(target, Tensor):
        raise DataError(
            f"cross_entropy needs targets in one tensor. Got {type(target).__name__} instead. For other targets, pass "
            f"{spelled('task', _TASK, of='FineTune')}."
        )
    if target.is_floating_point():  # class probabilities
        target = target.to(scores.dtype)
    elif target.ndim == scores.ndim and target.shape != scores.shape and target.shape[1] == 1:
        target = target.squeeze(1)  # a column of class indices
    if scores.ndim == 3 and target.shape == scores.shape[:2] and scores.shape[1:] != target.shape[1:] * 2:
        raise DataError(
            f"the outputs of shape {tuple(scores.shape)} have the classes last, one row per position, and the labels "
            f"may or may not be shifted. Pass {spelled('task', _TASK, of='FineTune')}: for tokens, lambda outputs, "
            "target: cross_entropy(outputs.logits.mT, target); for the next token, shift outputs and target first."
        )
    if not target.is_floating_point():
        target = target.long()
        require_classes(target, scores.shape[1] if scores.ndim > 1 else scores.shape[0])
    try:
        loss = F.cross_entropy(scores, target)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"cross_entropy cannot compare outputs of shape {tuple(scores.shape)} with targets of "
            f"shape {tuple(target.shape)} and type {target.dtype}: {error}. For another task, pass "
            f"{spelled('task', _TASK, of='FineTune')}."
        ) from error
    if bool(loss.isfinite()):
        return loss
    if not target.is_floating_point() and bool((target == IGNORED).all()):
        raise DataError(
            f"every target of a batch is {IGNORED}, which is ignored, so its cross-entropy is not defined. Leave out "
            "such batches."
        )
    return _masked_cross_entropy(scores, target, loss)


def _masked_cross_entropy(scores: Tensor, target: Tensor, loss: Tensor) -> Tensor:
    """Return the cross-entropy of scores with masked classes (-inf) if these make `loss` infinite, else `loss`."""
    axis = 1 if scores.ndim > 1 else 0
    masked = scores.isneginf()
    if bool(scores.isnan().any()) or not bool(masked.any()):
        return loss
    if target.is_floating_point():
        wrong = masked & (target > 0)
    else:
        counts = (target != IGNORED).unsqueeze(axis)
        index = target.clamp(min=0).unsqueeze(axis)
        wrong = masked.gather(axis, index) & counts
    if bool(wrong.any()):
        raise DataError(
            f"{int(wrong.sum())} target(s) are classes that the model masks (their scores are -inf), so the "
            "cross-entropy is infinite. Check the labels and the model's mask."
        )
    if not target.is_floating_point():
        return loss
    terms = scores.log_softmax(axis).masked_fill(masked, 0) * target  # 0 for a masked class with probability 0
    return -terms.sum(axis).mean()


def distillation(student: Any, teacher: Any, *, kind: str, temperature: float) -> Tensor:
    """Return the distance of the student's outputs from the teacher's, averaged over the batch.

    Parameters
    ----------
    student, teacher : object
        The outputs of both networks; see `rankfold.outputs.class_scores` and `class_axis`.
    kind : {"kl", "mse"}
        ``"kl"`` is T² · KL(softmax(teacher / T) ‖ softmax(student / T)), whose gradient does not shrink with the
        temperature T (Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2); ``"mse"`` is the
        mean squared difference. Infinite outputs of the teacher, such as masked scores, are excluded.

    Raises
    ------
    ModelError
        If the outputs differ in shape, the teacher's contain NaN, or they are infinite in different places.
    """
    ours, theirs = class_scores(student, dims=1).float(), class_scores(teacher, dims=1).detach().float()
    if ours.shape != theirs.shape:
        raise ModelError(
            f"the model's outputs have shape {tuple(ours.shape)}, the teacher's {tuple(theirs.shape)}. {WRONG_TEACHER}"
        )
    loss = _distillation(ours, theirs, kind, temperature)
    if bool(loss.isfinite()):
        return loss
    finite = theirs.isfinite()
    if bool(theirs.isnan().any()):
        raise ModelError("the teacher's outputs contain NaN. Check the data and the teacher.")
    if bool(finite.all()) or bool(ours.isnan().any()):
        return loss
    if not torch.equal(ours[~finite], theirs[~finite]) or not bool(ours[finite].isfinite().all()):
        raise ModelError(
            "the outputs of model and teacher are infinite in different places: the model masks other classes, or "
            "overflows. Mask the same classes in both, or train in a wider data type."
        )
    # Like -inf, a large negative score has probability 0, but its gradient is not NaN.
    ours, theirs = (torch.where(finite, scores, -1e30) for scores in (ours, theirs))
    loss = _distillation(ours, theirs, kind, temperature)
    return loss * (finite.numel() / finite.sum()) if kind == "mse" else loss


def _distillation(ours: Tensor, theirs: Tensor, kind: str, temperature: float) -> Tensor:
    if kind == "mse":
        return F.mse_loss(ours, theirs)
    axis = class_axis(ours)
    target = F.log_softmax(theirs / temperature, axis)
    divergence = F.kl_div(F.log_softmax(ours / temperature, axis), target, reduction="none", log_target=True)
    return divergence.sum(axis).mean() * temperature**2
