"""The contract of loss terms, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from rankfold._registry import Registry

WRONG_TEACHER = "The teacher must be the network that the model was compressed from."


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The input of a loss: one process's shard of a batch, on the training device.

    Parameters
    ----------
    inputs, target : object
        The parts of the batch (`rankfold.batches.split_batch`); the target is None without labels.
    samples, total : int
        Samples in the shard, and in the whole batch.
    active : bool
        False if there are fewer samples than processes: this process then takes part, but its loss does not count.
    where : str
        A description of the batch, for messages.
    sum : callable
        Sums a tensor over all processes.
    outputs, teacher_outputs : object
        The outputs of the model and of the teacher; the teacher's are detached, and None if no term needs them.
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
    """The base class of loss terms; a subclass overrides `loss`, and the other methods as needed.

    A run calls `start` once. In each step, the teacher runs first, if a term needs it, followed by `teacher_ran`. Then
    the model runs, with `compare` at every call of a module that `start` named, followed by `loss`.

    Attributes
    ----------
    name : str
        The name in ``FineTune(loss=...)`` and in the history.
    weight : float
        The factor of the term in the loss.
    needs_labels, needs_teacher : bool
        The requirements of the term.
    """

    name: str
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    weight: float = 1.0

    @classmethod
    def of(cls, config: Any) -> Self:  # noqa: ARG003
        """Return the term with its options in a `FineTune`."""
        return cls()

    def start(self, student: nn.Module, teacher: nn.Module | None) -> Iterable[str]:  # noqa: ARG002
        """Prepare for a run; return the paths of the modules whose outputs are compared in both networks."""
        return ()

    def teacher_ran(self, step: Step, outputs: Mapping[str, Sequence[Tensor]]) -> None:
        """Receive the teacher's outputs of the modules that `start` named, by path and call."""

    def compare(self, step: Step, path: str, ours: Tensor, theirs: Tensor) -> None:
        """Receive the outputs of one call of a module in the model and in the teacher."""

    def loss(self, step: Step) -> Tensor:
        """Return the unweighted term: a scalar, the mean over the samples of the step."""
        raise NotImplementedError


terms: Registry[Term] = Registry("loss term")
