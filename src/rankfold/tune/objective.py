"""The loss of fine-tuning as one module: a sum of terms over the outputs of model and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankfold._tensors import copied, detached
from rankfold.batches import call_model
from rankfold.errors import ConfigError, DataError, ModelError
from rankfold.inventory import KeptState, copy_model, fused_attention_off, without_gradients
from rankfold.surgery.attention import separate_attention_
from rankfold.tune.config import FineTune
from rankfold.tune.losses import Distill, Task
from rankfold.tune.terms import Step, Term


def require_teacher(terms: Sequence[Term] | None, *, has_teacher: bool) -> None:
    """Raise `ConfigError` if a term needs a teacher and there is none."""
    for term in terms or ():
        if term.needs_teacher and not has_teacher:
            raise ConfigError(
                f"the loss term {term.name!r} learns from the original network. Give it as teacher=, "
                "or choose loss='task'."
            )


@contextmanager
def opened(model: nn.Module, teacher: nn.Module | None, config: FineTune) -> Iterator[nn.Module]:
    """Give the objective of a config for the time of a run; afterwards no hook and no gradient is left."""
    objective = (config.objective or partial(Objective, config=config))(model, teacher)
    if not isinstance(objective, nn.Module):
        raise ConfigError(f"objective must return a torch.nn.Module. Got {type(objective).__name__} instead.")
    try:
        yield objective
    finally:
        close = getattr(objective, "close", None)
        if close is not None:
            close()
        objective.zero_grad()
        model.zero_grad()


class Objective(nn.Module):
    """The loss of one batch, a mean over its samples.

    It is a module, and the student its child, so that DistributedDataParallel sees which parameters
    a loss reaches (layer distillation alone does not reach a classifier) and mixed precision
    covers both networks. A term that is a module is trained along with the student.

    Parameters
    ----------
    student : nn.Module
        The model that is trained.
    teacher : nn.Module or None
        Runs without gradients. Not a child, so it is neither trained nor stored.
    config : FineTune
        The terms and their weights; ``"auto"`` is decided at the first step, by its target.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, config: FineTune) -> None:
        super().__init__()
        self.student = student
        self._config = config
        self._terms = config.terms
        self.modules_of_terms = nn.ModuleList([t for t in self._terms or () if isinstance(t, nn.Module)])
        self._taps = _Taps(student, teacher, self._terms or ())
        teacher = self._taps.teacher
        self._teacher = (teacher,)  # in a tuple: torch does not see it
        self._kept = None if teacher is None else KeptState(teacher)

    def close(self) -> None:
        """Remove the hooks from both networks."""
        self._taps.close()

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and, detached and unweighted, its terms by name."""
        terms = self._terms = self._terms or self._auto(step)
        for term in terms:
            if term.needs_labels and step.target is None:
                raise DataError(
                    f"the loss term {term.name!r} needs labels, but {step.where} has no labels. Give every batch as "
                    "(inputs, target), or choose loss='distill', which learns from the original network without them."
                )
        self._taps.begin(step)
        if any(term.needs_teacher for term in terms):
            step = replace(step, teacher_outputs=self._run_teacher(step))
        step = replace(step, outputs=call_model(self.student, step.inputs))
        self._taps.end()
        parts = {term.name: _number(term, term.loss(step)) for term in terms}
        loss = torch.stack([term.weight * parts[term.name] for term in terms]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _auto(self, step: Step) -> tuple[Term, ...]:
        kinds = (Task, step.target is not None), (Distill, self._kept is not None)
        terms = tuple(kind.of(self._config) for kind, possible in kinds if possible)
        if not terms:
            raise DataError(
                "there is nothing to learn from: the data has no labels and there is no teacher. "
                "Give batches as (inputs, target), or the original network as teacher."
            )
        return terms

    def _run_teacher(self, step: Step) -> Any:
        (teacher,), kept = self._teacher, self._kept
        assert teacher is not None
        assert kept is not None
        # The fused path of torch's attention calls no layer that could be listened to.
        quiet = fused_attention_off() if self._taps.terms else nullcontext()
        with without_gradients(kept.parameters), quiet:
            outputs = detached(call_model(teacher, copied(detached(step.inputs))))
        kept.reset()
        for term in self._terms or ():
            term.teacher_ran(step, self._taps.outputs)
        return outputs


def _number(term: Term, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(
            f"the loss term {term.name!r} must return a tensor with one number, the mean over the batch. Got {got} "
            "instead."
        )
    return value.reshape(())


class _Taps:
    """Hooks that hand terms the outputs of the same modules in both networks, call by call, while a step runs.

    Attributes
    ----------
    teacher : Module or None
        The teacher, or a copy of it in which every module that is compared can be listened to.
    terms : mapping
        The terms that compare outputs, by path.
    outputs : mapping
        What the teacher's modules returned in this step, by path, until the model has made the same call.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, terms: Sequence[Term]) -> None:
        self.terms: dict[str, list[Term]] = {}
        for term in terms:
            for path in term.start(student, teacher):
                self.terms.setdefault(path, []).append(term)
        self.outputs: dict[str, list[Tensor]] = {path: [] for path in self.terms}
        self._handles: list[RemovableHandle] = []
        self._step: Step | None = None  # None outside of a step: a metric may run both networks as well
        self.teacher = teacher
        if teacher is None or not self.terms:
            return
        self.teacher = _with_projections(teacher, list(self.terms))
        modules = {
            path: (_module(student, path, "model"), _module(self.teacher, path, "teacher")) for path in self.terms
        }
        for path, (ours, theirs) in modules.items():
            self._handles.append(theirs.register_forward_hook(partial(self._record, path)))
            self._handles.append(ours.register_forward_hook(partial(self._compare, path)))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def begin(self, step: Step) -> None:
        """Forget the last step, and listen."""
        self._step = step
        for outputs in self.outputs.values():
            outputs.clear()

    def end(self) -> None:
        """Stop listening, after both forward passes."""
        self._step = None
        left = [path for path, outputs in self.outputs.items() if outputs]
        if left:
            raise ModelError(
                f"layer {left[0]!r} ran more often in the teacher than in the model, so their outputs cannot be "
                "compared. The teacher must be the network that the model was compressed from."
            )

    def _record(self, path: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._step is not None:
            self.outputs[path].append(output.detach())

    def _compare(self, path: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._step is None:
            return
        outputs = self.outputs[path]
        if not outputs or outputs[0].shape != output.shape:
            theirs = tuple(outputs[0].shape) if outputs else "nothing"
            raise ModelError(
                f"layer {path!r} gave {tuple(output.shape)} in the model and {theirs} in the "
                "teacher. The teacher must be the network that the model was compressed from."
            )
        reference = outputs.pop(0)
        for term in self.terms[path]:
            term.compare(self._step, path, output, reference)


def _module(model: nn.Module, path: str, what: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the {what} has no module {path!r}, whose outputs a loss term compares.") from error


def _with_projections(teacher: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return the teacher, or a copy with separate projections where those of an attention are compared.

    An ``nn.MultiheadAttention`` computes its projections without calling a module that a hook could listen to.
    """
    parents = {path.rpartition(".")[0] for path in paths}
    packed = [p for p, m in teacher.named_modules() if p in parents and isinstance(m, nn.MultiheadAttention)]
    if not packed:
        return teacher
    twin = copy_model(teacher)
    for path in packed:
        separate_attention_(twin, path)
    return twin
