"""Facts about a network that are known before it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """Facts about a network that are known before it is built.

    Attributes
    ----------
    name : str
        The name that `create` takes.
    summary : str
        One-line description.
    data : str or None
        Kind of the default data set, such as ``"mnist5k"``. A kind such as ``"cifar10"`` still needs a path.
    task : {"image", "audio", "voxels", "video", "detection", "flow"} or None
        Form of the input; None if unknown.
    input_shape : tuple of int or None
        Shape of one input without the batch dimension; None if unknown or not a single tensor.
    num_classes : int or None
        Default number of outputs; None if it is decided when the network is built.
    mean, std : tuple of float or None
        Per-channel normalization of samples in [0, 1] (audio: [-1, 1]); None if the network takes unnormalized input.
    bundled : str or None
        File of the weights included in rankfold (``weights="bundled"``).
    build : callable
        Maps the number of classes (None for the network's own) to a randomly initialized network.
    """

    name: str
    summary: str
    data: str | None = None
    task: str | None = None
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bundled: str | None = None
    build: Callable[[int | None], nn.Module] = field(repr=False, compare=False)
