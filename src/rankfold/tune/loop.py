"""Fine-tuning, the verb: a copy or in place, with everything put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rankfold._turns import in_grad_turn
from rankfold.errors import ConfigError, ModelError
from rankfold.evaluation import as_metric
from rankfold.inventory.wrappers import unwrap
from rankfold.surgery import copy_model
from rankfold.tune.batch_source import BatchSource
from rankfold.tune.config import FineTune
from rankfold.tune.launch import launched
from rankfold.tune.objective import opened, require_teacher
from rankfold.tune.randomness import preserved
from rankfold.tune.result import TuneResult
from rankfold.tune.run import Progress, Run


@in_grad_turn
def finetune(
    model: nn.Module,
    config: FineTune,
    *,
    teacher: nn.Module | None = None,
    metric: Callable[[nn.Module], Any] | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Return a trained copy of the model; the model itself is left untouched.

    It is trained on the device that Accelerate chooses (an accelerator if there is one) and comes back on its own.
    Under ``accelerate launch`` or ``torchrun`` the processes share each batch, and the result is that of one process up
    to rounding, if the network has no BatchNorm in training mode (it normalises each process's share alone, and the
    main process's running statistics are kept; ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes it exact), no dropout,
    and the data no random augmentation.

    On the CPU, a run that was interrupted and is resumed from its checkpoint ends with the same bits as one that was
    not. Resuming replays the batches of the epoch it is in. What draws random numbers has to draw them from Python's,
    NumPy's or torch's global generators or the DataLoader's own; a warning says so if the data came in another order.

    Parameters
    ----------
    model : nn.Module
        What to train: its parameters that require gradients. A DataParallel or
        DistributedDataParallel wrapper is taken off first.
    config : FineTune
        Data, loss, optimizer, checkpoint.
    teacher : nn.Module or None
        The original network. It is run in eval mode, and left as it was.
    metric : callable or None
        ``metric(model)`` returns a finite number, after each epoch, for the model in eval mode; see
        `rankfold.evaluation.as_metric`.
    progress : callable or None
        Called after every step, on the main process. None shows a bar on the terminal.

    Returns
    -------
    TuneResult
        The model and its history.

    Raises
    ------
    DataError
        If there are no batches, no labels for a loss that needs them, or the data cannot be gone through again.
    ConfigError
        If a loss term needs a teacher that is not given, a target has no metric, or the checkpoint is of another run.
    ModelError
        If nothing can be trained, teacher and model do not match, or the loss becomes NaN or
        infinite (the message names the step; the model has not been updated with it).
    MetricError
        If the metric returns anything but a finite number.
    CorruptArtifact
        If the checkpoint cannot be read.
    """
    twin = copy_model(unwrap(model), instead="rankfold.finetune_")
    return finetune_(twin, config, teacher=teacher, metric=metric, progress=progress)


@in_grad_turn
def finetune_(
    model: nn.Module,
    config: FineTune,
    *,
    teacher: nn.Module | None = None,
    metric: Callable[[nn.Module], Any] | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Train the model in place; otherwise as `finetune`, without the memory for a copy."""
    model = unwrap(model)
    teacher = unwrap(teacher) if teacher is not None else None
    require_teacher(config.terms, has_teacher=teacher is not None)
    _check(model, teacher, config, metric)
    with launched(config.mixed_precision) as accelerator:
        device = accelerator.device
        with preserved(device), _borrowed(model, device), _borrowed(teacher, device), ExitStack() as stack:
            rank, world = accelerator.process_index, accelerator.num_processes
            source = BatchSource(config.data, seed=config.seed, rank=rank, world=world, device=device)
            stack.callback(source.close)
            objective = stack.enter_context(opened(model, teacher, config))
            measured = None if metric is None else as_metric(metric)
            return Run(model, teacher, objective, config, measured, progress, accelerator, source).run()


def _check(model: nn.Module, teacher: nn.Module | None, config: FineTune, metric: object) -> None:
    for what, module in (("model", model), ("teacher", teacher)):
        tensors = [*module.parameters(), *module.buffers()] if module is not None else []
        if any(nn.parameter.is_lazy(t) for t in tensors):
            raise ModelError(f"the {what} has lazy modules without weights. Run it once on an example input.")
        made_in_inference = any(t.is_inference() for t in tensors)
        if what == "model" and made_in_inference:
            raise ModelError(
                "the model was made inside torch.inference_mode(), and such parameters cannot be trained. Use "
                "finetune, which trains an ordinary copy, or make the model outside."
            )
        devices = {str(t.device) for t in tensors}
        if len(devices) > 1 or "meta" in devices:
            raise ModelError(
                f"the {what} lies on {', '.join(sorted(devices))}; fine-tuning needs it whole on one "
                "device. Move it to the CPU; each process moves it to its own accelerator."
            )
    if config.target is not None and metric is None:
        raise ConfigError(
            f"target={config.target} is a value of the metric, but there is none. Give metric=..., "
            "such as top1(loader)."
        )
    if teacher is not None:
        own = {p.data_ptr(): name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        shared = [own[p.data_ptr()] for p in teacher.parameters() if p.data_ptr() in own]
        if shared and shared[0]:
            raise ModelError(
                f"model and teacher share the parameter {shared[0]!r}, so training one would change "
                "the other. Use finetune, which trains a copy, or give a copy as teacher."
            )


@contextmanager
def _borrowed(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Put a model on the device and, in the end, back where and as it was."""
    if model is None:
        yield
        return
    flags = [(module, module.training) for module in model.modules()]
    home = next((t.device for t in (*model.parameters(), *model.buffers())), device)
    try:
        model.to(device)
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training
        if home != device:
            model.to(home)
