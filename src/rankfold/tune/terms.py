"""Loss terms of fine-tuning: what a term sees, what it declares, and where it is registered by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from rankfold._registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a loss is computed from: one process's share of a batch, on the training device.

    Parameters
    ----------
    inputs, target : object
        As the batch gives them (`rankfold.batches.split_batch`); the target is None without labels.
    samples, total : int
        Samples in the share, and in the whole batch.
    active : bool
        False if there are fewer samples than processes: this process then computes along, and its loss does not count.
    where : str
        The batch in words, for messages.
    sum : callable
        Sums a tensor over all processes.
    outputs, teacher_outputs : object
        What the model and the teacher returned; the teacher's are detached, and None if no term needs them.
    """

    inputs: Any
    target: Any = None
    samples: int
    total: int
    active: bool = True
    where: str = "the batch"
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    outputs: Any = None
    teacher_outputs: Any = None


class Term:
    """One term of the loss; a subclass overrides `loss`, and the rest where it needs it.

    A run calls `start` once. At each step the teacher runs first, if any term needs it, then `teacher_ran` is called,
    then the model runs, with `compare` at every call of a module that `start` named, and then `loss` is called.

    Attributes
    ----------
    name : str
        The name in ``FineTune(loss=...)`` and in the history.
    weight : float
        The factor of the term in the loss.
    needs_labels, needs_teacher : bool
        What cannot be missing.
    """

    name: str
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    weight: float = 1.0

    @classmethod
    def of(cls, config: Any) -> Self:  # noqa: ARG003
        """Return the term with the options that a `FineTune` has for it."""
        return cls()

    def start(self, student: nn.Module, teacher: nn.Module | None) -> Iterable[str]:  # noqa: ARG002
        """Prepare for a run, and return the paths of the modules whose outputs are to be compared in both networks."""
        return ()

    def teacher_ran(self, step: Step, outputs: Mapping[str, Sequence[Tensor]]) -> None:
        """Take note of the teacher's outputs at the modules that `start` named, call by call."""

    def compare(self, step: Step, path: str, ours: Tensor, theirs: Tensor) -> None:
        """Take note of one call of a module in the model, and of the same call in the teacher."""

    def loss(self, step: Step) -> Tensor:
        """Return the term, unweighted: one number, the mean over the samples of the step."""
        raise NotImplementedError


terms: Registry[Term] = Registry("loss term")
