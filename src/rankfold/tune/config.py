"""The configuration of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from torch import Tensor, nn

from rankfold._config import is_integer, is_number, require, spelled
from rankfold._options import COUNT, SEED, Check, boolean, integer
from rankfold.errors import ConfigError, UnknownNameError
from rankfold.tune.terms import Term, terms

Task = Callable[[Any, Any], Tensor]
Loss = str | Sequence[str | Term]

# Default learning rate and weight decay of each optimizer.
OPTIMIZERS: dict[str, tuple[float, float]] = {"sgd": (0.02, 1e-4), "adam": (1e-4, 0.0), "adamw": (1e-3, 0.01)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """How a model is trained.

    The defaults are a short recipe that recovers a network after compression: SGD with Nesterov momentum, warm-up and
    cosine decay, and the task loss (if the data has labels) plus soft-label distillation from the original.
    `rankfold.tune.RECIPES` are the recipes of papers.

    Parameters
    ----------
    data : iterable
        Batches (`rankfold.batches`): a DataLoader, a list, or any iterable that can be iterated over once per epoch.
        They are the *global* batches, for any number of processes. If the data (or a DataLoader's sampler or data set)
        has ``set_epoch``, it is called with each epoch. Iterables without a length are counted before training, unless
        `max_steps` is given.
    epochs : int
        Passes over the training data.
    max_steps : int or None
        Stop after this number of batches, even within an epoch. The schedule then ends there, too.
    loss : str or sequence
        Loss terms joined by ``+``, such as ``"task+layer"``: ``"task"``, ``"distill"``, ``"layer"``; or ``"auto"``.
        ``"task"`` needs labels; ``"distill"`` (the original's outputs) and ``"layer"`` (RENE's layer distillation) need
        a teacher. ``"auto"`` is ``"task+distill"`` with labels and a teacher, otherwise the one that is possible.
        Registered terms (`rankfold.tune.terms`) have further names, and a list may contain `rankfold.tune.Term`
        objects.
    task : {"cross_entropy"} or callable
        The task loss. A callable receives ``(outputs, target)`` unchanged and returns the mean over the batch.
    task_weight, distill_weight, layer_weight : float
        The weight of each term; `layer_weight` is RENE's lambda (eq. 11), 0.5 as in the paper.
    distill : {"kl", "mse"}
        The Kullback-Leibler divergence from the original's softened class probabilities, or the mean squared error of
        the outputs (for networks whose outputs are not logits).
    temperature : float
        Softens both distributions of ``"kl"``; the term is multiplied by its square.
    layer_scale : {"relative", "mean", "sum"}
        Scale of the squared norms of eq. 10 (see `rankfold.tune.LayerDistillation`); ``"sum"`` is the paper's formula.
    objective : callable or None
        ``objective(model, teacher)`` returns a module that replaces `loss`. The model is a child of the module; the
        teacher must not be (hold it in a tuple). Its forward takes a `rankfold.tune.Step` and returns the loss, a
        scalar, or the loss and a dict of its terms for the history. Its parameters are also trained. A method ``close``
        is called at the end.
    groups : callable or None
        ``groups(objective)`` returns the optimizer's parameter groups; ``"lr"`` of a group is its peak. None trains all
        parameters that require gradients, with `weight_decay` on matrices and none on vectors.
    optimizer : {"sgd", "adam", "adamw"}
        Optimizer: ``"sgd"`` (with Nesterov momentum), ``"adam"`` or ``"adamw"``.
    lr : float or None
        Peak learning rate, by default 0.02 for SGD, 1e-4 for Adam and 0.001 for AdamW.
    momentum : float
        Momentum of SGD.
    weight_decay : float or None
        Weight decay of weights, not of biases and norms, by default 1e-4 for SGD, 0 for Adam and 0.01 for AdamW.
    warmup : float or int
        Linear warm-up: a share of all steps (a float below 1) or a number of steps (an int).
    schedule : {"cosine", "constant", "plateau"}
        The schedule after the warm-up. ``"plateau"`` is torch's ``ReduceLROnPlateau``: the learning rate is constant,
        and is reduced when the metric after each epoch (without a metric, the training loss) no longer improves.
    plateau_patience : int
        Consecutive epochs without improvement before ``"plateau"`` reduces the learning rate, in the next one.
    plateau_factor : float
        Factor of a reduction, 0..1.
    max_grad_norm : float or None
        Clip the gradient to this norm; None disables clipping. Distillation's gradients are large just after
        compression: a ResNet-20 at 30 % of its parameters, fine-tuned for two epochs of 8,192 CIFAR-10 images, reached
        81.9 % top-1 (of 2,000 test images) with it and 64.1 % without.
    mixed_precision : {"no", "fp16", "bf16"} or None
        None is the setting of ``accelerate launch``, or ``"no"``. ``"fp16"`` needs an accelerator.
    channels_last : bool
        Store images, volumes and the weights of their convolutions in torch's memory format ``channels_last`` during
        training. Results are the same up to rounding. It often saves time: distillation of a ResNet-20 with half of its
        parameters took 0.79 of the time on one thread of a processor with AVX-512 (`benchmarks/memory_format.py`).
    merge_factors : bool
        Run each factored layer as one dense layer during training, with the product of its factors as its weight. The
        factors are trained as before, with the same gradients up to rounding; metrics are measured on the factored
        layers. Steps take the time and the memory of the dense network: a third of the time and a quarter of the
        memory for filter-wise CP of rank 4, but 1.5 times the time for Tucker (`benchmarks/merged.py`).
    freeze_batchnorm_statistics : bool
        Normalize by the running statistics and do not update them. For very small batches.
    target : float or None
        Stop after the epoch in which the metric reaches this value.
    keep : {"last", "best"}
        Keep the weights of the last epoch, or of the epoch with the best metric (the first of equals).
    validate : callable or None
        The metric after each epoch, which `target`, `keep` and ``"plateau"`` follow, such as ``rf.top1(held_out)``. By
        default, the metric that `finetune` or `compress` gets; if that is measured on test data, the final value is
        optimistic.
    checkpoint : path or None
        File of the checkpoint, or folder for ``finetune.pt``. A name with a suffix is a file.
    checkpoint_every : int or None
        Steps between checkpoints, by default one epoch.
    resume : bool
        Resume from the checkpoint if it exists; for a finished run, return its result. False starts over and overwrites
        the checkpoint.
    seed : int
        Random seed of the data order, augmentation and dropout.
    """

    data: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    epochs: int = 5
    max_steps: int | None = None
    loss: Loss = "auto"
    task: Literal["cross_entropy"] | Task = "cross_entropy"
    task_weight: float = 1.0
    distill_weight: float = 1.0
    layer_weight: float = 0.5
    distill: Literal["kl", "mse"] = "kl"
    temperature: float = 4.0
    layer_scale: Literal["relative", "mean", "sum"] = "relative"
    objective: Callable[[nn.Module, nn.Module | None], nn.Module] | None = None
    groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None = None
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup: float | int = 0.1
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau_patience: int = 10
    plateau_factor: float = 0.1
    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    channels_last: bool = False
    merge_factors: bool = False
    freeze_batchnorm_statistics: bool = False
    target: float | None = None
    keep: Literal["last", "best"] = "last"
    validate: Callable[[nn.Module], Any] | None = field(default=None, repr=False, compare=False)
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value before any work is done."""
        if isinstance(self.loss, list):
            object.__setattr__(self, "loss", tuple(self.loss))
        _parse(self.loss)
        if not callable(self.task) and self.task != "cross_entropy":
            raise UnknownNameError("task loss", str(self.task), ["cross_entropy"])
        for name, (kind, choices) in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UnknownNameError(kind, str(value), [choice for choice in choices if choice is not None])
        for name, check in CHECKS.items():
            check(name, getattr(self, name))
        if self.objective is not None and self.loss != "auto":
            raise ConfigError(f"objective replaces loss, but loss is {self.loss!r}. Pass only one of the two.")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ConfigError(
                f"{spelled('checkpoint_every', self.checkpoint_every)} needs a checkpoint. Set "
                f"{spelled('checkpoint', ..., of='FineTune')} to a folder or file."
            )

    @property
    def terms(self) -> tuple[Term, ...] | None:
        """The terms of `loss`; terms given by name have the options of this config. None for ``"auto"``."""
        if self.loss == "auto":
            return None
        return tuple(terms.entry(part).plugin.of(self) if isinstance(part, str) else part for part in _parse(self.loss))

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr if self.lr is not None else OPTIMIZERS[self.optimizer][0]

    @property
    def decay(self) -> float:
        """The weight decay."""
        return self.weight_decay if self.weight_decay is not None else OPTIMIZERS[self.optimizer][1]

    @property
    def metric_option(self) -> tuple[str, Any] | None:
        """The option that needs the metric after each epoch, with its value; None if there is none."""
        if self.target is not None:
            return "target", self.target
        return ("keep", "best") if self.keep == "best" else None

    @property
    def uses_metric(self) -> bool:
        """Whether the metric after each epoch affects the run."""
        return self.metric_option is not None or self.schedule == "plateau"


def _parse(loss: object) -> list[str | Term]:
    """Return the parts of a loss: names of terms, and terms."""
    parts: Sequence[Any] = loss.replace(" ", "").split("+") if isinstance(loss, str) else ()
    parts = loss if isinstance(loss, tuple) else parts
    for part in parts:
        if not isinstance(part, Term) and part not in terms.names() and loss != "auto":
            alone = [] if part == "auto" else ["auto"]  # not together with other terms
            raise UnknownNameError(terms.kind, str(part), [*alone, *terms.names()])
    names = [part.name if isinstance(part, Term) else part for part in parts]
    distinct = bool(parts) and len(names) == len(set(names))
    require(distinct, "loss", loss, "'auto' or different terms joined by '+', such as 'task+layer'")
    return list(parts)


def _finite(value: Any) -> TypeGuard[float]:
    return is_number(value) and math.isfinite(value)


_CHOICES: dict[str, tuple[str, Sequence[str | None]]] = {
    "distill": ("distillation", ("kl", "mse")),
    "layer_scale": ("scale of the layer distillation", ("relative", "mean", "sum")),
    "optimizer": ("optimizer", tuple(OPTIMIZERS)),
    "schedule": ("schedule", ("cosine", "constant", "plateau")),
    "keep": ("choice of epoch", ("last", "best")),
    "mixed_precision": ("mixed precision", ("no", "fp16", "bf16", None)),
}


def _that(good: Callable[[Any], bool], wanted: str, *, optional: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        require((value is None and optional) or good(value), name, value, wanted)

    return check


def _amount(*, optional: bool = False) -> Check:
    return _that(lambda v: _finite(v) and v >= 0, "a number of at least 0", optional=optional)


def _positive(*, optional: bool = False) -> Check:
    return _that(lambda v: _finite(v) and v > 0, "a number above 0", optional=optional)


CHECKS: dict[str, Check] = {
    "epochs": COUNT,
    **dict.fromkeys(("max_steps", "checkpoint_every"), integer(1, optional=True)),
    **dict.fromkeys(("task_weight", "distill_weight", "layer_weight"), _amount()),
    "weight_decay": _amount(optional=True),
    "temperature": _positive(),
    **dict.fromkeys(("lr", "max_grad_norm"), _positive(optional=True)),
    **dict.fromkeys(("objective", "groups", "validate"), _that(callable, "a callable, or None", optional=True)),
    **dict.fromkeys(("channels_last", "merge_factors", "freeze_batchnorm_statistics"), boolean),
    "plateau_patience": integer(0),
    "plateau_factor": _that(lambda v: _finite(v) and 0 < v < 1, "a number above 0 and below 1"),
    "momentum": _that(lambda v: _finite(v) and 0 < v < 1, "a number above 0 and below 1 (Nesterov momentum)"),
    "warmup": _that(
        lambda v: _finite(v) and v >= 0 and (is_integer(v) or v < 1),
        "a share of the steps (a float from 0 to below 1) or an integer",
    ),
    "target": _that(_finite, "a finite number", optional=True),
    "seed": SEED,
}
"""Checks of numbers and callables by option."""
