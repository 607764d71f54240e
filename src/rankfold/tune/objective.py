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

from rankfold._config import spelled
from rankfold._tensors import copied, detached
from rankfold.batches import call_model
from rankfold.errors import ConfigError, DataError, ModelError
from rankfold.inventory import KeptState, copy_model, fused_attention_off, without_gradients
from rankfold.surgery.attention import separate_attention_
from rankfold.tune.config import FineTune
from rankfold.tune.losses import Distill, Task
from rankfold.tune.narrowed import Narrowed
from rankfold.tune.terms import WRONG_TEACHER, Step, Term


@contextmanager
def opened(model: nn.Module, teacher: nn.Module | None, config: FineTune) -> Iterator[nn.Module]:
    """Yield the objective of a config for the duration of a run; afterwards remove its hooks and the gradients."""
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
    """The loss of one batch, a mean over its samples; ``"auto"`` is resolved by the first step's target.

    The student is a child module, so that DistributedDataParallel sees which parameters a loss reaches (layer
    distillation alone does not reach a classifier) and mixed precision covers both networks. The teacher is not a
    child, so it is neither trained nor stored. A term that is a module is trained along with the student.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, config: FineTune) -> None:
        super().__init__()
        self.student = student
        self._config = config
        self._terms = config.terms
        self.modules_of_terms = nn.ModuleList([t for t in self._terms or () if isinstance(t, nn.Module)])
        self._taps = _Taps(student, teacher, self._terms or ())
        teacher = self._taps.teacher
        self._teacher = (teacher,)  # in a tuple, so that it is not a child
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
                    f"the loss term {term.name!r} needs labels, but {step.where} has no labels. Pass every batch as "
                    f"(inputs, target), or choose {spelled('loss', 'distill')}, which learns from the original network "
                    "without them."
                )
        self._taps.begin(step)
        if any(term.needs_teacher for term in terms):
            step = replace(step, teacher_outputs=self._run_teacher(step))
        step = replace(step, outputs=call_model(self.student, step.inputs))
        self._taps.end()
        parts = {term.name: scalar(term.loss(step), f"the loss term {term.name!r}") for term in terms}
        loss = torch.stack([term.weight * parts[term.name] for term in terms]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _auto(self, step: Step) -> tuple[Term, ...]:
        kinds = (Task, step.target is not None), (Distill, self._kept is not None)
        terms = tuple(kind.of(self._config) for kind, possible in kinds if possible)
        if not terms:
            raise DataError(
                "fine-tuning needs labels or a teacher. Pass batches as (inputs, target), or the original network as "
                "teacher."
            )
        return terms

    def _run_teacher(self, step: Step) -> Any:
        (teacher,), kept = self._teacher, self._kept
        assert teacher is not None
        assert kept is not None
        # The fused path of torch's attention does not call the layers, so hooks on them do not run.
        unfused = fused_attention_off() if self._taps.terms else nullcontext()
        with without_gradients(kept.parameters), unfused:
            outputs = detached(call_model(teacher, copied(detached(step.inputs))))
        kept.reset()
        for term in self._terms or ():
            term.teacher_ran(step, self._taps.outputs)
        return outputs


def scalar(value: Any, what: str) -> Tensor:
    """Return a loss as a tensor without dimensions; raise `ModelError` if it has several elements."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"{what} must return a tensor with one number, the mean over the batch. Got {got} instead.")
    return value.reshape(())


class _Taps:
    """Hooks that pass the outputs of the same modules in both networks to terms, call by call, during a step."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, terms: Sequence[Term]) -> None:
        self.terms: dict[str, list[Term]] = {}  # the terms that compare outputs, by path
        for term in terms:
            for path in term.start(student, teacher):
                self.terms.setdefault(path, []).append(term)
        # What the teacher's modules returned in this step, until the model has made the same call.
        self.outputs: dict[str, list[Tensor]] = {path: [] for path in self.terms}
        self._handles: list[RemovableHandle] = []
        self._step: Step | None = None  # None outside of a step: a metric may run both networks as well
        self.teacher = teacher  # or a copy in which hooks on every compared module run
        if teacher is None or not self.terms:
            return
        self.teacher = _with_projections(teacher, list(self.terms))
        self._narrowed = Narrowed(student, teacher)
        modules = [(_module(student, path, "model"), _module(self.teacher, path, "teacher")) for path in self.terms]
        for path, (ours, theirs) in zip(self.terms, modules, strict=True):
            self._handles.append(theirs.register_forward_hook(partial(self._record, path)))
            self._handles.append(ours.register_forward_hook(partial(self._compare, path)))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def begin(self, step: Step) -> None:
        """Discard the previous step's outputs and start recording."""
        self._step = step
        for outputs in self.outputs.values():
            outputs.clear()

    def end(self) -> None:
        """Stop recording, after both forward passes."""
        self._step = None
        left = [path for path, outputs in self.outputs.items() if outputs]
        if left:
            raise ModelError(
                f"layer {left[0]!r} ran more often in the teacher than in the model, so their outputs cannot be "
                f"compared. {WRONG_TEACHER}"
            )

    def _record(self, path: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._step is not None:
            self.outputs[path].append(self._narrowed.output(path, output.detach()))

    def _compare(self, path: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._step is None:
            return
        outputs = self.outputs[path]
        if not outputs or outputs[0].shape != output.shape:
            theirs = f"one of shape {tuple(outputs[0].shape)}" if outputs else "none"
            raise ModelError(
                f"layer {path!r} has an output of shape {tuple(output.shape)} in the model, {theirs} in the teacher. "
                f"{WRONG_TEACHER}"
            )
        reference = outputs.pop(0)
        for term in self.terms[path]:
            term.compare(self._step, path, output, reference)


def _module(model: nn.Module, path: str, what: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"the {what} has no module {path!r}, whose outputs a loss term compares. {WRONG_TEACHER}"
        ) from error


def _with_projections(teacher: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return the teacher, or a copy with separate projections if those of an attention are compared.

    An ``nn.MultiheadAttention`` computes its projections without calling a module, so hooks on them would not run.
    """
    parents = {path.rpartition(".")[0] for path in paths}
    packed = [p for p, m in teacher.named_modules() if p in parents and isinstance(m, nn.MultiheadAttention)]
    if not packed:
        return teacher
    twin = copy_model(teacher)
    for path in packed:
        separate_attention_(twin, path)
    return twin
