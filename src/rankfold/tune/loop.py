"""The entry points of fine-tuning, on a copy or in place; all other state is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rankfold._config import Code, spelled
from rankfold._tensors import arrange_, is_channels_last
from rankfold._turns import in_grad_turn
from rankfold.errors import ConfigError, ModelError
from rankfold.evaluation import as_metric
from rankfold.inventory.wrappers import unwrap
from rankfold.surgery import copy_model
from rankfold.surgery.carried import report_parameters
from rankfold.tune.batch_source import BatchSource
from rankfold.tune.config import FineTune
from rankfold.tune.launch import launched
from rankfold.tune.objective import opened
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

    Training runs on the device that Accelerate chooses (an accelerator if available); the result is on the model's
    device. Under ``accelerate launch`` or ``torchrun``, the processes share each batch. The result then equals that of
    one process up to rounding, unless the data has random augmentation or the network has dropout or BatchNorm in
    training mode. BatchNorm normalizes each process's shard separately and keeps the main process's running statistics;
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes it exact.

    On the CPU, a run that is resumed from its checkpoint ends with the same bits as an uninterrupted one. Resuming
    replays the batches of the current epoch. Random numbers must therefore come from the global generators of Python,
    NumPy or torch, or from the DataLoader's generator; a warning reports data in another order.

    Parameters
    ----------
    model : nn.Module
        The model; parameters that require gradients are trained. A DataParallel or DistributedDataParallel wrapper is
        removed first.
    config : FineTune
        Data, loss, optimizer, checkpoint.
    teacher : nn.Module or None
        The original network. It runs in evaluation mode and is left unchanged.
    metric : callable or None
        ``metric(model)`` returns a finite number. It is called after each epoch, with the model in evaluation mode; see
        `rankfold.evaluation.as_metric`. `FineTune.validate` replaces it.
    progress : callable or None
        Called after every step, on the main process. None shows a progress bar.

    Returns
    -------
    TuneResult
        The model and its history.

    Raises
    ------
    DataError
        If there are no batches, no labels for a loss that needs them, or the data cannot be iterated over again.
    ConfigError
        If a loss term needs a teacher, `target` or `keep` needs a metric, or the checkpoint is of another run.
    ModelError
        If no parameter can be trained, teacher and model do not match, or the loss becomes NaN or infinite (the message
        names the step, which has not updated the model).
    MetricError
        If the metric does not return a finite number.
    CorruptArtifact
        If the checkpoint cannot be read.
    """
    model = unwrap(model)
    report_parameters(model)
    twin = copy_model(model, instead="rankfold.finetune_")
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
    metric = config.validate or metric
    _check(model, teacher, config, metric)
    with launched(config.mixed_precision) as accelerator:
        device = accelerator.device
        with preserved(device), ExitStack() as stack:
            for network in (model, teacher):
                if network is not None:  # a module may have a length of zero
                    stack.enter_context(_borrowed(network, device, channels_last=config.channels_last))
            rank, world = accelerator.process_index, accelerator.num_processes
            source = BatchSource(config.data, seed=config.seed, rank=rank, world=world, device=device)
            stack.callback(source.close)
            objective = stack.enter_context(opened(model, teacher, config))
            measured = None if metric is None else as_metric(metric)
            return Run(model, teacher, objective, config, measured, progress, accelerator, source).run()


def _check(model: nn.Module, teacher: nn.Module | None, config: FineTune, metric: object) -> None:
    for term in config.terms or ():
        if term.needs_teacher and teacher is None:
            raise ConfigError(
                f"the loss term {term.name!r} learns from the original network. Pass {spelled('teacher', ...)}, or "
                f"choose {spelled('loss', 'task')}."
            )
    for what, module in (("model", model), ("teacher", teacher)):
        tensors = [*module.parameters(), *module.buffers()] if module is not None else []
        if any(nn.parameter.is_lazy(t) for t in tensors):
            raise ModelError(f"the {what} has lazy modules without weights. Run it once on an example input.")
        if what == "model" and any(t.is_inference() for t in tensors):
            raise ModelError(
                "the model was created under torch.inference_mode(), so its parameters cannot be trained. Use "
                "finetune, which trains an ordinary copy, or create the model outside of it."
            )
        devices = {str(t.device) for t in tensors}
        if len(devices) > 1 or "meta" in devices:
            raise ModelError(
                f"the {what} is on {', '.join(sorted(devices))}; fine-tuning needs all of it on one "
                "device. Move it to the CPU; each process moves it to its accelerator."
            )
    if config.metric_option is not None and metric is None:
        raise ConfigError(
            f"{spelled(*config.metric_option)} needs a metric, but there is none. Pass "
            f"{spelled('metric', Code('rf.top1(loader)'))}."
        )
    if teacher is not None:
        trained = {p.data_ptr(): name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        shared = next((trained[p.data_ptr()] for p in teacher.parameters() if p.data_ptr() in trained), None)
        if shared:
            raise ModelError(
                f"model and teacher share the parameter {shared!r}, so training one would change "
                "the other. Use finetune, which trains a copy, or pass a copy as teacher."
            )


@contextmanager
def _borrowed(model: nn.Module, device: torch.device, *, channels_last: bool) -> Iterator[None]:
    """Put a model on the device in evaluation mode; afterwards restore its device, modes and memory format."""
    flags = [(module, module.training) for module in model.modules()]
    home = next((t.device for t in (*model.parameters(), *model.buffers())), device)
    changed = [p for p in model.parameters() if channels_last and not is_channels_last(p)]
    try:
        model.to(device)
        arrange_(changed, channels_last=True)
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training
        arrange_(changed, channels_last=False)
        if home != device:
            model.to(home)
