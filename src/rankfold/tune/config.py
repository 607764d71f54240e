"""What fine-tuning is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from torch import Tensor

from rankfold._config import require
from rankfold.errors import ConfigError, UnknownNameError

Task = Callable[[Any, Any], Tensor]
Term = Literal["task", "distill", "layer"]

TERMS: tuple[Term, ...] = ("task", "distill", "layer")

# Learning rate and weight decay of an optimizer where the config leaves them open.
OPTIMIZERS: dict[str, tuple[float, float]] = {"sgd": (0.02, 1e-4), "adamw": (1e-3, 0.01)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """How a compressed model is trained.

    The defaults are a short recipe that recovers a network after compression: SGD with Nesterov
    momentum, a warm-up and a cosine, the labels' loss (where the data has labels) plus soft-label
    distillation from the original.

    Parameters
    ----------
    data : iterable
        Batches (see `rankfold.batches`): a DataLoader, a list, or anything that can be iterated
        over once per epoch. Its batches are the *global* batches, on any number of processes. If it
        (or a DataLoader's sampler or data set) has ``set_epoch``, that is called with each epoch.
        Iterables without a length are counted once before the training, unless `max_steps` is
        given.
    epochs : int
        Passes over the data.
    max_steps : int or None
        Stop after so many batches, even within an epoch; the schedule then ends there too.
    loss : str
        What is minimised: terms joined by ``+`` out of ``"task"`` (needs labels), ``"distill"``
        (the original's outputs; needs a teacher) and ``"layer"`` (RENE's layer distillation; needs
        a teacher), such as ``"task+layer"``. ``"auto"`` is ``"task+distill"`` if there are labels
        and a teacher, else the one that is possible.
    task : {"cross_entropy"} or callable
        The task loss. A callable gets ``(outputs, target)`` as the model and the data gave them and
        returns the mean over the batch.
    task_weight, distill_weight, layer_weight : float
        The weight of each term; `layer_weight` is RENE's lambda (eq. 11), 0.5 as in the paper.
    distill : {"kl", "mse"}
        The Kullback-Leibler divergence from the original's softened class probabilities, or the
        mean squared error of the outputs (for networks whose outputs are no logits).
    temperature : float
        Softens both distributions of ``"kl"``; the term is multiplied by its square.
    layer_scale : {"relative", "mean", "sum"}
        How the squared norms of eq. 10 are scaled (see `rankfold.tune.layers`); ``"sum"`` is the
        paper's formula to the letter.
    optimizer : {"sgd", "adamw"}
        SGD has Nesterov momentum.
    lr : float or None
        Peak learning rate; None is 0.02 for SGD and 0.001 for AdamW.
    momentum : float
        Of SGD.
    weight_decay : float or None
        On weights; biases and norms have none. None is 1e-4 for SGD and 0.01 for AdamW.
    warmup : float or int
        Linear warm-up: a share of all steps (a float below 1) or a number of steps (an int).
    schedule : {"cosine", "constant"}
        What follows the warm-up.
    max_grad_norm : float or None
        Clip the gradient to this norm; None leaves it as it is. Distillation's gradients are large
        just after compression: a ResNet-20 at 30 % of its parameters, fine-tuned for two epochs of
        8,192 CIFAR-10 images, reached 81.9 % top-1 (of 2,000 test images) with it and 64.1 % without.
    mixed_precision : {"no", "fp16", "bf16"} or None
        None is what ``accelerate launch`` says, else ``"no"``. ``"fp16"`` needs an accelerator.
    freeze_batchnorm_statistics : bool
        Normalise by the running statistics and leave them as they are. For very small batches.
    target : float or None
        Stop after the epoch in which the metric reaches this value.
    checkpoint : path or None
        A file (a name with a suffix), or a folder in which ``finetune.pt`` is written.
    checkpoint_every : int or None
        Steps between checkpoints; None writes one after each epoch only.
    resume : bool
        Continue from the checkpoint if there is one; if it is of a finished run, return its result
        at once. False starts anew and overwrites it.
    seed : int
        Of everything random: the order of the data, augmentation, dropout.
    """

    data: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    epochs: int = 5
    max_steps: int | None = None
    loss: str = "auto"
    task: Literal["cross_entropy"] | Task = "cross_entropy"
    task_weight: float = 1.0
    distill_weight: float = 1.0
    layer_weight: float = 0.5
    distill: Literal["kl", "mse"] = "kl"
    temperature: float = 4.0
    layer_scale: Literal["relative", "mean", "sum"] = "relative"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup: float | int = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    freeze_batchnorm_statistics: bool = False
    target: float | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse every value that cannot be meant, before any work is done."""
        if self.loss != "auto":
            _parse(self.loss)
        if not callable(self.task):
            _one_of("task loss", self.task, ["cross_entropy"])
        _one_of("distillation", self.distill, ["kl", "mse"])
        _one_of("scale of the layer distillation", self.layer_scale, ["relative", "mean", "sum"])
        _one_of("optimizer", self.optimizer, list(OPTIMIZERS))
        _one_of("schedule", self.schedule, ["cosine", "constant"])
        if self.mixed_precision is not None:
            _one_of("mixed precision", self.mixed_precision, ["no", "fp16", "bf16"])
        _at_least("epochs", self.epochs)
        _at_least("max_steps", self.max_steps, optional=True)
        _at_least("checkpoint_every", self.checkpoint_every, optional=True)
        for name in ("task_weight", "distill_weight", "layer_weight"):
            _number(name, getattr(self, name))
        _number("weight_decay", self.weight_decay, optional=True)
        _number("temperature", self.temperature, zero=False)
        _number("lr", self.lr, zero=False, optional=True)
        _number("max_grad_norm", self.max_grad_norm, zero=False, optional=True)
        require(
            _is_number(self.momentum) and 0 < self.momentum < 1,
            "momentum", self.momentum, "a number above 0 and below 1 (it is Nesterov's)",
        )  # fmt: skip
        require(
            _is_number(self.warmup)
            and (self.warmup >= 0 if isinstance(self.warmup, int) else 0 <= self.warmup < 1),
            "warmup", self.warmup, "a share of the steps (a float from 0 to below 1) or an integer",
        )  # fmt: skip
        if self.target is not None:
            require(_is_number(self.target), "target", self.target, "a finite number")
        require(_is_int(self.seed) and self.seed >= 0, "seed", self.seed, "an integer of at least 0")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ConfigError(
                f"checkpoint_every is {self.checkpoint_every}, but there is no checkpoint. "
                "Give FineTune(checkpoint=...) a folder or file."
            )

    @property
    def terms(self) -> frozenset[Term] | None:
        """The terms that `loss` names; None if it is ``"auto"``."""
        return None if self.loss == "auto" else _parse(self.loss)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr if self.lr is not None else OPTIMIZERS[self.optimizer][0]

    @property
    def decay(self) -> float:
        """The weight decay."""
        return self.weight_decay if self.weight_decay is not None else OPTIMIZERS[self.optimizer][1]


def _parse(loss: object) -> frozenset[Term]:
    words = loss.replace(" ", "").split("+") if isinstance(loss, str) else []
    for word in words:
        if word not in TERMS:
            raise UnknownNameError("term of the fine-tuning loss", word, ["auto", *TERMS])
    found: frozenset[Term] = frozenset(term for term in TERMS if term in words)
    require(
        bool(words) and len(words) == len(found),
        "loss", loss, "'auto' or different terms joined by '+', such as 'task+layer'",
    )  # fmt: skip
    return found


def _one_of(kind: str, value: object, choices: list[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise UnknownNameError(kind, str(value), choices)


def _at_least(option: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(good, option, value, "an integer of at least 1")


def _number(option: str, value: Any, *, zero: bool = True, optional: bool = False) -> None:
    if value is None and optional:
        return
    good = _is_number(value) and (value >= 0 if zero else value > 0)
    require(good, option, value, f"a number {'of at least' if zero else 'above'} 0")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
