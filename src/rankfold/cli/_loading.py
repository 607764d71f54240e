"""Models, inputs, loaders and metrics that the command line names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold import zoo
from rankfold.batches import iterate, split_batch
from rankfold.cli._command import Given
from rankfold.cli._source import Source
from rankfold.errors import ConfigError, DataError, RankfoldWarning, UnknownNameError
from rankfold.evaluation import Metric, agreement, topk
from rankfold.zoo.factories import is_factory


def pick_device(name: str) -> torch.device:
    """Return the device of this name; ``"auto"`` is cuda if available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"--device {name!r} is not available: this machine has {count} CUDA devices. Pass --device auto."
        )
    return device


def open_model(source: Source, device: torch.device | None = None) -> nn.Module:
    """Build the network with its weights, on the device."""
    model = zoo.create(source.model, weights=source.weights, num_classes=source.num_classes, seed=source.seed)
    return model.to(device or torch.device("cpu"))


def is_trained(source: Source) -> bool:
    """Return whether the network has weights: from a file, or from a factory that may load its own."""
    return source.weights is not None or is_factory(source.model)


def warn_untrained(source: Source) -> None:
    """Warn before a network with random weights is measured."""
    if source.data is not None and not is_trained(source):
        bundled = ", such as bundled" if zoo.entry(source.model).bundled else ""
        warnings.warn(
            f"{source.model} has random weights, so its accuracy is meaningless. Pass --weights{bundled}.",
            RankfoldWarning,
            stacklevel=2,
        )


def open_data(source: Source, split: str, **options: Any) -> Iterable[Any]:
    """Return a loader of one split of the source's data; `options` are those of `rankfold.zoo.data`."""
    if source.data is None:
        raise DataError("this command needs data. Pass --data, such as mnist5k or cifar10:PATH.")
    info = zoo.entry(source.model)
    shape = source.input_size[1:] if source.input_size else info.input_shape
    if source.data.startswith("imagefolder:") and shape is not None and len(shape) == 3:
        options["image_size"] = (shape[1], shape[2])
    options = {"normalize": info, "batch_size": source.batch_size, "seed": source.seed, **options}
    loader = zoo.data(source.data, split=split, **options)
    if iter(loader) is loader:
        raise DataError(
            f"{source.data!r} returned an iterator, which yields its batches only once. Return a list or a DataLoader."
        )
    return loader


def open_test(source: Source) -> Iterable[Any] | None:
    """Return the test loader; None without data."""
    return None if source.data is None else open_data(source, "test", limit=source.limit_test)


def open_example(source: Source, test: Iterable[Any] | None) -> Any:
    """Return an example input: of the given size, else the zoo's, else the first test image."""
    if source.input_size is not None:
        return torch.randn(source.input_size, generator=torch.Generator().manual_seed(0))
    example = zoo.example_input(source.model)
    if example is None and test is not None:
        inputs, _ = split_batch(next(iterate(test, "test")))
        example = inputs[:1] if isinstance(inputs, torch.Tensor) else inputs
    if example is None:
        raise ConfigError(f"the input of {source.model!r} is unknown. Pass --input-size, such as 1,3,224,224.")
    return example


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The network with its weights, an example input, and loaders (None without data)."""

    dense: nn.Module
    example: Any
    test: Iterable[Any] | None
    calibration: Iterable[Any] | None

    @property
    def metric(self) -> Metric | None:
        """The metric on the test images; None without data."""
        return pick_metric(self.test, lambda: self.dense)


def open_work(source: Source, given: Given, *, tests: bool = True) -> Work:
    """Open the model and data of a command; without `tests` the test images only serve as the example input."""
    device = pick_device(given.device)
    zoo.entry(source.model)  # an unknown name is an error before data is read
    test = open_test(source)
    if tests:
        warn_untrained(source)
    images = getattr(given, "calibration_images", None)
    calibration = None if source.data is None or images is None else open_data(source, "calibration", limit=images)
    dense = open_model(source, device)
    return Work(dense=dense, example=open_example(source, test), test=test, calibration=calibration)


def pick_metric(test: Iterable[Any] | None, reference: Callable[[], nn.Module], k: int = 1) -> Metric | None:
    """Return top-k accuracy if the data has labels, else agreement with the reference; None without data."""
    if test is None:
        return None
    _, target = split_batch(next(iter(test), ()))
    return agreement(reference(), test) if target is None else topk(test, k)
