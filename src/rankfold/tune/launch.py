"""Accelerate for the duration of one run: device, processes, mixed precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rankfold._config import spelled
from rankfold.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def launched(mixed_precision: str | None) -> Iterator[Accelerator]:
    """Yield an Accelerator that follows the environment of ``accelerate launch`` or ``torchrun``.

    Accelerate keeps one mixed-precision setting per Python process. It is saved and restored, so that the program may
    have another Accelerator, and runs may differ.

    Raises
    ------
    ConfigError
        If the launcher shards the model, or the device does not support the mixed precision.
    """
    # Imported here, so that `import rankfold` stays fast.
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    states = [AcceleratorState._shared_state, GradientState._shared_state]
    saved = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        # A loss need not reach every parameter, and stochastic depth skips different ones in each step.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                # Without this, Accelerate ignores other processes on the CPU.
                cpu=not torch.accelerator.is_available(),
                # Otherwise a launcher's setting would divide each loss, although none is accumulated.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[unused],
            )
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{spelled('mixed_precision', mixed_precision)} is not possible on this device: {error}. Choose 'no' "
                "or 'bf16'."
            ) from error
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ConfigError(
                f"{spelled('mixed_precision', 'fp16')} is not possible on the CPU. Choose 'no' or 'bf16'."
            )
        kind = accelerator.distributed_type.value
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ConfigError(
                f"fine-tuning does not run under {kind}: each process must hold the whole model. Configure accelerate "
                "launch for plain multi-GPU or multi-CPU."
            )
        _require_all_processes(accelerator.num_processes)
        yield accelerator
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)


def _require_all_processes(count: int) -> None:
    """Raise if several processes would each train alone and overwrite each other's checkpoints."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        started = torch.distributed.get_world_size()
    else:
        started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != count:
        raise ConfigError(
            f"{started} processes were started together, but Accelerate uses {count}. Start them "
            "with torchrun or accelerate launch, and do not create another Accelerator first."
        )
