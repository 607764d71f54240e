"""Accelerate for the time of one run: device, processes, mixed precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rankfold.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def launched(mixed_precision: str | None) -> Iterator[Accelerator]:
    """Give an Accelerator as ``accelerate launch`` or ``torchrun`` set the process up.

    Accelerate keeps one setting of the mixed precision per Python process. It is put aside and back,
    so that the program may have another Accelerator, and two runs may differ.

    Raises
    ------
    ConfigError
        If the launcher shards the model, or the device cannot do the mixed precision.
    """
    # Imported here: `import rankfold` must not pay for it.
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    states = [AcceleratorState._shared_state, GradientState._shared_state]
    saved = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        # A loss need not reach every parameter, and stochastic depth leaves out other ones each step.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                # Accelerate ignores other processes on the CPU unless it is told so.
                cpu=not torch.accelerator.is_available(),
                # Else a launcher's setting would divide each loss, although none is accumulated.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[unused],
            )
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"mixed_precision={mixed_precision!r} is not possible on this device: {error}. Choose 'no' or 'bf16'."
            ) from error
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ConfigError("mixed_precision='fp16' is not possible on the CPU. Choose 'no' or 'bf16'.")
        kind = accelerator.distributed_type.value
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ConfigError(
                f"fine-tuning runs on one or several processes that each hold the whole model, not "
                f"under {kind}. Configure accelerate launch for plain multi-GPU or multi-CPU."
            )
        _require_all_processes(accelerator.num_processes)
        yield accelerator
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)


def _require_all_processes(known: int) -> None:
    """Refuse to let several processes each train alone and write over each other's checkpoints."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        started = torch.distributed.get_world_size()
    else:
        started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != known:
        raise ConfigError(
            f"{started} processes were started together, but Accelerate knows of {known}. Start them "
            "with torchrun or accelerate launch, and make no Accelerator before that differs."
        )
