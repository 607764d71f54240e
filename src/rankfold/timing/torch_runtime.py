"""``torch`` and ``torch.compile``: eager and compiled execution."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold.errors import ModelError
from rankfold.evaluation.latency import time_call
from rankfold.inventory import copy_model
from rankfold.records import Blueprint, Call, Choice, LayerInfo
from rankfold.surgery import build
from rankfold.surgery.stock import uninitialized
from rankfold.timing.contract import Run, Runtime, registry
from rankfold.timing.target import Target

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells."""
    lines = _CPU_INFO.read_text("utf-8").splitlines() if _CPU_INFO.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def processor(device: str) -> str:
    """Return the name of a device, with the instructions that torch uses on a CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def fill_(module: nn.Module) -> nn.Module:
    """Fill every parameter with random values of the usual magnitude, and return the module.

    Values of uninitialized memory may be denormal, which slows a processor down.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return module


def layer_module(layer: LayerInfo, blueprint: Blueprint | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a dense or factored layer with random weights, in evaluation mode."""
    if blueprint is None:
        module = uninitialized(layer, bias=layer.bias, dtype=dtype, device=device)
    else:
        named = Blueprint(tuple(renamed(blueprint)))
        module = build(named, layer, Choice(), dtype=dtype, device=device)
    return fill_(module).eval()


def renamed(blueprint: Blueprint) -> Iterator[Any]:
    """Yield the stages of a blueprint with distinct names."""
    for place, stage in enumerate(blueprint.stages):
        yield replace(stage, name=f"stage{place}")


def layer_input(layer: LayerInfo, call: Call, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a random input of a layer, ``(batch, in_channels, *in_size)``."""
    shape = (call.batch, layer.in_channels, *call.in_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eager(Runtime):
    """PyTorch as it runs without a compiler."""

    name = "torch"
    arranged = True

    def facts(self, target: Target) -> dict[str, Any]:
        """Return the version of torch and the device."""
        return {"device": processor(target.device or "cpu"), "torch": str(torch.__version__)}

    @contextmanager
    def session(self, target: Target) -> Iterator[None]:
        """Set the number of threads, and restore it."""
        before = torch.get_num_threads()
        torch.set_num_threads(target.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def layer(self, layer: LayerInfo, blueprint: Blueprint | None, call: Call, target: Target) -> Run:
        """Return a run of a layer in eager mode."""
        dtype, device = target.torch_dtype, torch.device(target.device or "cpu")
        module = target.arrange_(layer_module(layer, blueprint, dtype, device))
        return self._run(module, target.arranged(layer_input(layer, call, dtype, device)))

    def model(self, model: nn.Module, inputs: Any, target: Target) -> Run:
        """Return a run of a copy of the model."""
        copied = copy_model(model).to(target.device or "cpu", target.torch_dtype).eval()
        return self._run(self._prepared(target.arrange_(copied)), inputs)

    def _prepared(self, model: nn.Module) -> nn.Module:
        return model

    def _run(self, module: Any, inputs: Any) -> Run:
        def run() -> float:
            with torch.inference_mode():
                return time_call(module, inputs)

        return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled(Eager):
    """PyTorch with ``torch.compile``.

    Layers are timed in eager mode: compiling every candidate would take hours, and convolutions and matrix products run
    the same kernels. Whole models are compiled.
    """

    name = "torch.compile"

    def _prepared(self, model: nn.Module) -> nn.Module:
        torch.compiler.reset()
        return torch.compile(model, dynamic=False)  # pyright: ignore[reportReturnType]

    def model(self, model: nn.Module, inputs: Any, target: Target) -> Run:
        """Return a run of a compiled copy of the model.

        Raises
        ------
        ModelError
            If torch cannot compile the model.
        """
        run = Eager.model(self, model, inputs, target)
        try:
            run()
        except Exception as error:
            raise ModelError(
                f"the model cannot be compiled. torch.compile raised {type(error).__name__}: {error}\n"
                f"Use {spelled('target', 'torch')}."
            ) from error
        return run


registry.register(Eager, summary="PyTorch, eager")
registry.register(Compiled, summary="PyTorch with torch.compile; layers are timed in eager mode")
