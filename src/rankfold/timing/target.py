"""Targets: where, and under which settings, a model runs whose latency counts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import nn

from rankfold._config import require
from rankfold._options import COUNT, integer
from rankfold._tensors import (
    arrange_,
    float_tensors,
    in_memory_format,
    is_channels_last,
    map_tensors,
    model_device,
)
from rankfold.batches import batch_size
from rankfold.errors import ConfigError, UnknownNameError

DTYPES = ("float32", "float16", "bfloat16", "float64")
MEMORY_FORMATS = ("contiguous", "channels_last")
DEFAULT_RUNTIME = "torch"
_FORM = "such as onnxruntime or 'onnxruntime, batch=32, threads=1'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A runtime and its settings; what is None is taken from the model and the example input.

    Parameters
    ----------
    runtime : str
        ``"torch"`` (eager), ``"torch.compile"`` or ``"onnxruntime"``.
    device : str or None
        ``"cpu"`` or ``"cuda"``; by default the model's.
    batch : int or None
        Samples per forward pass; by default those of the example input.
    threads : int or None
        CPU threads; by default those of torch.
    dtype : str or None
        Data type of weights and activations; by default the model's.
    memory_format : str or None
        ``"contiguous"`` or ``"channels_last"``: how torch stores images, volumes and the weights of their convolutions;
        by default as the model's weights are stored. ONNX Runtime decides for itself.
    """

    runtime: str = DEFAULT_RUNTIME
    device: str | None = None
    batch: int | None = None
    threads: int | None = None
    dtype: str | None = None
    memory_format: str | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.runtime, str), "runtime", self.runtime, "the name of a runtime")
        require(self.device in (None, "cpu", "cuda"), "device", self.device, "'cpu' or 'cuda'")
        integer(1, optional=True)("batch", self.batch)
        integer(1, optional=True)("threads", self.threads)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UnknownNameError("data type", str(self.dtype), DTYPES)
        if self.memory_format is not None and self.memory_format not in MEMORY_FORMATS:
            raise UnknownNameError("memory format", str(self.memory_format), MEMORY_FORMATS)

    @classmethod
    def of(cls, value: str | Target) -> Target:
        """Return a target for a text, such as ``"onnxruntime"`` or ``"torch, batch=32, threads=1"``.

        Raises
        ------
        UnknownNameError
            If a setting, the data type or the memory format is unknown.
        ConfigError
            If a value is out of range, or the text cannot be read.
        """
        if isinstance(value, Target):
            return value
        require(isinstance(value, str), "target", value, f"a runtime with settings, {_FORM}, or a Target")
        runtime, *texts = (part.strip() for part in value.split(","))
        known = [field.name for field in fields(cls) if field.name != "runtime"]
        settings: dict[str, Any] = {}
        for text in texts:
            name, equals, given = (part.strip() for part in text.partition("="))
            if name not in known:
                raise UnknownNameError("setting", name, known, of="a target")
            require(bool(equals and given), "target", value, f"a runtime with settings, {_FORM}")
            number = name in ("batch", "threads")
            require(not number or given.isdecimal(), name, given, "an integer of at least 1")
            settings[name] = int(given) if number else given
        return cls(runtime=runtime, **settings)

    def settled(self, model: nn.Module, example_input: Any, *, arranged: bool = False) -> Self:
        """Return the target with every setting given; the memory format only if weights are `arranged` in one.

        Raises
        ------
        ConfigError
            If there is no CUDA device.
        """
        dtypes = [t.dtype for t in (*model.parameters(), *float_tensors(example_input)) if t.is_floating_point()]
        stored = model.parameters() if arranged else ()
        settled = replace(
            self,
            device=self.device or (model_device(model) or torch.device("cpu")).type,
            batch=self.batch or batch_size(example_input),
            threads=self.threads or torch.get_num_threads(),
            dtype=self.dtype or str(next(iter(dtypes), torch.float32)).removeprefix("torch."),
            memory_format=self.memory_format or ("channels_last" if any(map(is_channels_last, stored)) else None),
        )
        COUNT("batch", settled.batch)
        if settled.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"target {str(self)!r} needs CUDA, which this machine lacks. Use device=cpu.")
        return settled

    @property
    def torch_dtype(self) -> torch.dtype:
        """The data type; float32 if it is not given."""
        return getattr(torch, self.dtype or "float32")

    def arrange_(self, model: nn.Module) -> nn.Module:
        """Store the weights of a model in the memory format, in place, and return the model."""
        arrange_(model.parameters(), channels_last=self.memory_format == "channels_last")
        return model

    def arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the memory format."""
        return in_memory_format(tensor, channels_last=self.memory_format == "channels_last")

    def inputs(self, example_input: Any) -> Any:
        """Return inputs with the target's batch size (`resized`), data type and memory format, on its device."""
        dtype = self.torch_dtype

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            own = dtype if tensor.is_floating_point() else tensor.dtype
            return self.arranged(tensor.detach().to(self.device or "cpu", own))

        return map_tensors(moved, self.resized(example_input))

    def resized(self, example_input: Any) -> Any:
        """Return inputs with the target's batch size: repetitions of the first sample, or as they are.

        Raises
        ------
        ConfigError
            If the example input has another batch size and cannot be repeated.
        """
        count, batch = batch_size(example_input), self.batch
        if batch in (None, count):
            return example_input

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            require(
                tensor.ndim > 0 and tensor.shape[0] == count, "batch", batch,
                f"{count}, as in the example input, which has a tensor without a batch dimension",
            )  # fmt: skip
            return tensor[:1].repeat(batch or 1, *[1] * (tensor.ndim - 1))

        return map_tensors(repeated, example_input)

    def __str__(self) -> str:
        """Return the text that `of` reads."""
        settings = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "runtime"]
        return ", ".join([self.runtime, *(f"{name}={value}" for name, value in settings if value is not None)])

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
