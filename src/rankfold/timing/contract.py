"""The contract of runtimes, in which layers and models are timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rankfold._registry import Registry
from rankfold.records import Blueprint, Call, LayerInfo
from rankfold.timing.target import Target

Run = Callable[[], float]
"""Runs a layer or a model once and returns the seconds that it took."""


class Runtime(ABC):
    """What executes a model.

    A subclass is a frozen dataclass, one file each in this package, registered under its `name`.

    Attributes
    ----------
    name : str
        The name in the interface.
    arranged : bool
        Whether it stores tensors in the memory format of the target.
    """

    __slots__ = ()

    name: str
    arranged: bool = False

    def check(self, target: Target) -> None:  # noqa: B027 - optional
        """Raise `ConfigError` if a package is missing or a setting of the target is not supported."""

    @abstractmethod
    def facts(self, target: Target) -> dict[str, Any]:
        """Return what times depend on besides the target: the versions and the device, as JSON-ready values."""

    @contextmanager
    def session(self, target: Target) -> Iterator[None]:  # noqa: ARG002 - for subclasses
        """Hold settings of the process, such as the number of threads, while runs are timed."""
        yield

    @abstractmethod
    def layer(self, layer: LayerInfo, blueprint: Blueprint | None, call: Call, target: Target) -> Run:
        """Return a run of one layer, factored or (None) dense, on random values.

        `call` has the sizes of its input.
        """

    @abstractmethod
    def model(self, model: nn.Module, inputs: Any, target: Target) -> Run:
        """Return a run of a whole model, which is left unchanged, in evaluation mode.

        `inputs` have the target's batch size, data type, memory format and device.
        """


registry: Registry[Runtime] = Registry("runtime")
"""All runtimes by name."""

get = registry.get
"""Return a runtime by name; see `Registry.get`."""
