"""One training run: epochs, steps and checkpoints, on Hugging Face Accelerate."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankfold import _files
from rankfold._config import spelled
from rankfold._progress import track
from rankfold._state import buffer_owners, extra_state, load_state_, own_state, register_late_buffers_
from rankfold._tensors import float_tensors, in_memory_format, map_tensors, ordinary, to_device
from rankfold.batches import split_batch
from rankfold.errors import DataError, MetricError, ModelError, RankfoldError, RankfoldWarning
from rankfold.evaluation import Metric, evaluate
from rankfold.inventory import KeptState, holds_graph
from rankfold.surgery.merged import merged
from rankfold.tune import checkpoint
from rankfold.tune.batch_source import BatchSource, Shard, digest, require_batches
from rankfold.tune.config import FineTune
from rankfold.tune.objective import scalar
from rankfold.tune.optimizers import build_optimizer, lr_at, plateau_scale
from rankfold.tune.randomness import RandomStream, preserved
from rankfold.tune.result import Epoch, StepInfo, TuneResult
from rankfold.tune.terms import Step

if TYPE_CHECKING:
    from accelerate import Accelerator

Progress = Callable[[StepInfo], object]


@dataclass(slots=True)
class State:
    """The progress of a run, as stored in a checkpoint."""

    epoch: int = 0  # the current one, from 0
    batch: int = 0  # completed batches of it
    step: int = 0  # optimizer steps in total
    loss: float = 0.0  # sum over this epoch's samples
    terms: dict[str, float] = field(default_factory=dict)  # the same for each term
    samples: int = 0
    lr: float = 0.0
    seconds: float = 0.0  # of this epoch
    kept_epoch: int = 0  # the completed epoch (from 1) whose weights the result would have
    finished: bool = False
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """The run of one process; the networks are on the training device. See `rankfold.tune.finetune`."""

    model: nn.Module
    teacher: nn.Module | None
    objective: nn.Module  # maps a `Step` to the loss, or to the loss and its terms by name
    config: FineTune
    metric: Metric | None
    progress: Progress | None
    accelerator: Accelerator
    source: BatchSource

    def __post_init__(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.main = accelerator.is_main_process
        self.state, self.started = State(), False
        self.best: dict[str, Any] = {}  # the model's state after the best epoch, with keep="best"
        self.scale = 1.0  # of the learning rate, after plateaus
        self.saved_steps = 0  # of the checkpoint
        self.kept, self.stateful = KeptState(self.model, buffers=False), None
        self.total = self._total_steps()
        self.file: Path | None = None
        self.identity: dict[str, Any] = {}
        self.probe: dict[str, Any] | None = None
        if config.checkpoint is not None:
            self.file = checkpoint.checkpoint_file(config.checkpoint)
            name = None if self.metric is None else self.metric.name
            self.identity = checkpoint.identity(self.model, self.teacher, config, self.total, name)
            self.probe = self._probe()
        optimizer = build_optimizer(self.objective, config)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.optimizer.zero_grad()  # the model may have gradients

    def _total_steps(self) -> int:
        config, source = self.config, self.source
        length = source.length()
        if source.once and config.epochs > 1:
            raise DataError(
                f"the fine-tuning data is an iterator, which yields its batches only once, but epochs is "
                f"{config.epochs}. Pass a list or a DataLoader, or set {spelled('epochs', 1)}."
            )
        if length is None and config.max_steps is not None:
            return config.max_steps
        total = config.epochs * (length if length is not None else source.count())
        return min(total, config.max_steps or total)

    def _probe(self) -> dict[str, Any] | None:
        """Return a fingerprint of this run's data and networks; None if the data can be iterated over only once."""
        if self.source.once or not self.main:
            return None
        device = self.accelerator.device
        with preserved(device), closing(self.source.epoch(0)) as shards:
            shard = next(shards, None)
        return None if shard is None else checkpoint.probe(self.model, self.teacher, to_device(shard.batch, device))

    def _sum(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(tensor, "sum"))

    def run(self) -> TuneResult:
        """Resume from the checkpoint if there is one, and train to the end."""
        replay = self._resume() if self.config.resume else None
        resumed = self.state.step if replay is not None else None
        if replay is None:
            self._save(None)  # fails before any work if it cannot be written
        try:
            while not self.state.finished:
                self._epoch(replay)
                replay = None
        except RankfoldError:
            # A checkpoint without a step saves no work, and would refuse a corrected option as another run.
            if self.file is not None and self.main and not self.saved_steps:
                self.file.unlink(missing_ok=True)
            raise
        state = self.state
        self.accelerator.wait_for_everyone()
        return TuneResult(
            model=self.model,
            history=tuple(Epoch(**entry) for entry in state.history),
            steps=state.step,
            kept_epoch=state.kept_epoch,
            stopped_early=state.stopped_early,
            resumed_from=resumed,
        )

    def _epoch(self, replay: str | None) -> None:
        state, config = self.state, self.config
        self._train_mode()
        self.scale = self._plateau_scale()
        start, before, done = time.monotonic(), state.seconds, state.batch
        with ExitStack() as stack:
            if config.merge_factors:
                stack.enter_context(merged(self.model))
            self.kept = KeptState(self.model, buffers=False)
            shards = stack.enter_context(closing(self.source.epoch(state.epoch)))
            for position, shard in enumerate(self._tracked(shards)):
                if position < done:  # replayed to advance the data's random numbers
                    if position == done - 1 and replay:
                        self._check_replay(shard, replay)
                    continue
                self._step(shard)
                state.batch = position + 1
                state.seconds = before + time.monotonic() - start
                if state.step >= self.total:
                    break
                if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                    self._save(shard)
        require_batches(state.batch, state.epoch)
        self._finish_epoch(start, before)

    def _tracked(self, shards: Iterator[Shard]) -> Iterator[Shard]:
        if self.progress is not None or not self.main:
            return shards
        text = f"training, epoch {self.state.epoch + 1} of {self.config.epochs}"
        if self.state.history:
            text += f" (loss {self.state.history[-1]['loss']:.3g})"
        return track(shards, text, total=self.source.length())

    def _step(self, shard: Shard) -> None:
        state, config, accelerator = self.state, self.config, self.accelerator
        inputs, target = split_batch(ordinary(to_device(shard.batch, accelerator.device)))
        if config.channels_last:
            inputs = map_tensors(partial(in_memory_format, channels_last=True), inputs)
        where = f"batch {state.batch + 1} of epoch {state.epoch + 1}" if self.started else "the first batch"
        step = Step(
            inputs=inputs, target=target, samples=shard.samples, total=shard.total, active=shard.active,
            where=where, sum=self._sum,
        )  # fmt: skip
        state.lr = self.scale * lr_at(config, state.step, self.total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.scale * lr_at(config, state.step, self.total, peak)
        # Dropout and similar layers draw from a separate stream, which depends on the step only.
        rank = accelerator.process_index
        with RandomStream(accelerator.device, config.seed, "model", state.step, rank):
            loss, terms = self._forward(step)
            values = torch.stack([loss.detach(), *(term.detach().to(loss) for term in terms.values())])
            mean, *parts = (self._sum(values * shard.weight)).tolist()
            if not all(map(math.isfinite, (mean, *parts))):
                self._raise_diverged(mean, dict(zip(terms, parts, strict=True)), inputs)
            # The wrapper averages the gradients over processes; this turns them into the mean over samples.
            accelerator.backward(loss * (shard.weight * accelerator.num_processes))
            if config.max_grad_norm is not None:
                accelerator.clip_grad_norm_(self.objective.parameters(), config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.stateful is None:
            self.stateful = holds_graph(self.model)
        if self.stateful:  # recurrent state: the graph of one batch is freed before the next
            self.kept.reset()
        self.started = True
        state.loss += mean * shard.total
        for name, value in zip(terms, parts, strict=True):
            state.terms[name] = state.terms.get(name, 0.0) + value * shard.total
        state.samples += shard.total
        state.step += 1
        if self.progress is not None and self.main:
            info = StepInfo(step=state.step, total=self.total, epoch=state.epoch + 1, loss=mean, lr=state.lr)
            self.progress(info)

    def _forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            result = self.wrapped(step)
        except (RankfoldError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            if "more than 1 value per channel" in str(error):
                raise DataError(
                    f"batch {self.state.batch + 1} has {step.samples} sample(s) per process, too few for BatchNorm. "
                    "Set drop_last=True or another batch_size in the DataLoader, or set "
                    f"{spelled('freeze_batchnorm_statistics', True)}."
                ) from error
            raise ModelError(
                f"the model, the teacher or the loss cannot handle {step.where}: {error}. A batch is (inputs, target), "
                "or inputs only; inputs in a tuple or mapping are several arguments."
            ) from error
        loss, terms = result if isinstance(result, tuple) else (result, {})
        if not (loss := scalar(loss, "the objective")).requires_grad:
            raise ModelError(
                "the loss has no gradient, so the model cannot be trained. Its forward runs without gradients "
                "(torch.no_grad, torch.inference_mode) or detaches its outputs, or all parameters that reach the loss "
                "are frozen (requires_grad=False)."
            )
        return loss, terms

    def _raise_diverged(self, loss: float, terms: Mapping[str, float], inputs: Any) -> None:
        state = self.state
        diverged = [name for name, value in terms.items() if not math.isfinite(value)]
        where = f"step {state.step + 1} (epoch {state.epoch + 1}, batch {state.batch + 1})"
        where += f", in the term(s) {', '.join(diverged)}" if diverged else ""
        if all(bool(t.isfinite().all()) for t in float_tensors(inputs)):
            advice = (
                f"Lower {spelled('lr')} (now {self.config.peak_lr:.3g}), set {spelled('max_grad_norm', 1.0)}, increase "
                f"{spelled('warmup')}, or use {spelled('mixed_precision', 'bf16')} instead of 'fp16'."
            )
        else:
            advice = "The inputs of that batch contain NaN or infinity: fix or remove them."
        raise ModelError(f"the loss became {loss} at {where}. {advice} The step has not changed the weights.")

    def _finish_epoch(self, start: float, before: float) -> None:
        state, config = self.state, self.config
        self._share_buffers()
        metric, target = self.metric, config.target
        value = None if metric is None else self._measure(metric)
        entry = Epoch(
            epoch=state.epoch + 1,
            loss=state.loss / max(1, state.samples),
            terms={name: total / max(1, state.samples) for name, total in state.terms.items()},
            lr=state.lr,
            metric=value,
            seconds=before + time.monotonic() - start,
        )
        over = state.epoch + 1 >= config.epochs or state.step >= self.total
        reached = False
        if metric is not None and value is not None and target is not None:
            reached = metric.drop(target, value) <= 0
        history = [*state.history, asdict(entry)]
        self.state = State(
            epoch=state.epoch + 1, step=state.step, lr=state.lr, history=history, kept_epoch=state.kept_epoch
        )
        self.state.finished, self.state.stopped_early = over or reached, reached and not over
        self._keep()
        self._save(None)

    def _keep(self) -> None:
        """Keep the model's state if the completed epoch is the best; after the last epoch, restore the best state."""
        state, metric = self.state, self.metric
        if self.config.keep == "last" or metric is None:
            state.kept_epoch = state.epoch
            return
        values = [entry["metric"] for entry in state.history]
        if not state.kept_epoch or metric.drop(values[state.kept_epoch - 1], values[-1]) < 0:
            state.kept_epoch = state.epoch
            self.best = copy.deepcopy(own_state(self.model) | extra_state(self.model))
        if state.finished:
            load_state_(self.model, self.best)
            self.best = {}

    def _plateau_scale(self) -> float:
        """Return the factor of the learning rate in the current epoch."""
        if self.config.schedule != "plateau":
            return 1.0
        watched = "loss" if self.metric is None else "metric"
        values = [entry[watched] for entry in self.state.history]
        higher = self.metric is not None and self.metric.higher_is_better
        return plateau_scale(self.config, values, higher_is_better=higher)

    def _check_replay(self, shard: Shard, replay: str) -> None:
        if self.main and digest(shard.batch) != replay:
            warnings.warn(
                "the data has another order than before the interruption, so the result will differ from that of an "
                "uninterrupted run. Draw random numbers from the global generators only, or define a method "
                "set_epoch(epoch) on the data.",
                RankfoldWarning,
                stacklevel=2,
            )

    def _train_mode(self) -> None:
        self.wrapped.train()
        if self.config.freeze_batchnorm_statistics:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _share_buffers(self) -> None:
        """Broadcast the main process's buffers: BatchNorm has seen different shards."""
        from accelerate.utils import broadcast

        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                if buffer.dtype is not torch.bool:
                    buffer.copy_(cast(Tensor, broadcast(buffer.clone())))

    def _measure(self, metric: Metric) -> float:
        from accelerate.utils import broadcast_object_list

        self.model.eval()
        device, after = self.accelerator.device, f"after epoch {self.state.epoch + 1}"
        try:
            with RandomStream(device, self.config.seed, "metric", self.state.epoch):
                value = evaluate(self.model, metric)
        except MetricError as error:
            raise MetricError(f"{after}: {error}") from error
        except Exception as error:  # a metric is the user's code
            raise MetricError(
                f"the metric {metric.name!r} failed {after} with {type(error).__name__}: {error}\n"
                f"During fine-tuning the model is on {str(device)!r}: move the metric's data to "
                "`next(model.parameters()).device`."
            ) from error
        box = [value]
        broadcast_object_list(box)  # all processes must make the same decision to stop
        return box[0]

    def _own_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the objective that are not the model's."""
        shared = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        tensors = (*self.objective.named_parameters(), *self.objective.named_buffers())
        return {name: tensor.detach() for name, tensor in tensors if id(tensor) not in shared}

    def _save(self, shard: Shard | None) -> None:
        """Write a checkpoint after a shard, or between two epochs."""
        if self.file is None or not self.main:
            return
        scaler, self.saved_steps = self.accelerator.scaler, self.state.step
        checkpoint.save(
            self.file,
            {
                "identity": self.identity,
                "probe": self.probe,
                "state": asdict(self.state),
                "model": own_state(self.model) | extra_state(self.model),
                "best": self.best,
                "buffers": buffer_owners(self.model),
                "objective": self._own_tensors(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "replay": digest(shard.batch) if shard is not None else "",
                "processes": self.accelerator.num_processes,
            },
        )

    def _resume(self) -> str | None:
        """Load the checkpoint; return the hash of its last batch, or None without a checkpoint."""
        from accelerate.utils import broadcast_object_list

        if self.file is None:
            return None
        # The main process reads it for all processes: others may not have access to its disk.
        box: list[Any] = [self._read() if self.main else None]
        broadcast_object_list(box)
        stored = box[0]
        if isinstance(stored, RankfoldError):
            raise stored
        if stored is None:
            return None
        register_late_buffers_(self.model, stored["model"], stored.get("buffers", {}))
        load_state_(self.model, stored["model"])
        for name, tensor in self._own_tensors().items():
            tensor.copy_(stored["objective"][name])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.accelerator.scaler is not None and stored["scaler"]:
            self.accelerator.scaler.load_state_dict(stored["scaler"])
        self.state, self.best = State(**stored["state"]), stored["best"]
        self.saved_steps = self.state.step
        same = stored["processes"] == self.accelerator.num_processes
        return stored["replay"] if same else ""

    def _read(self) -> dict[str, Any] | RankfoldError | None:
        assert self.file is not None
        try:
            _files.require_usable(self.file)
            _files.sweep(self.file.parent, self.file.name)
            stored = checkpoint.read(self.file)
            if stored is not None:
                checkpoint.require_same(self.file, stored.get("identity"), self.identity)
                if stored["processes"] == self.accelerator.num_processes:  # or the shards differ
                    # Within an epoch, the replayed batches show whether the data has changed.
                    checkpoint.require_same_probe(self.file, stored.get("probe"), self.probe, warn=not stored["replay"])
        except RankfoldError as error:  # raised by every process
            return error
        return stored
