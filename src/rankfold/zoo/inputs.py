"""An example input for each network that the zoo can name."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.zoo import external
from rankfold.zoo.entries import entry

# What a network is called with: a tuple holds positional arguments, a dict keyword arguments, and
# anything else, a list included, is the single argument.
ExampleInput = Tensor | list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]


def example_input(name: str) -> ExampleInput | None:
    """Return an input that the network of this name can be run on, always the same one.

    Parameters
    ----------
    name : str
        Any name that `create` takes.

    Returns
    -------
    Tensor, list, tuple or None
        A tensor ``(1, C, H, W)`` for image networks and ``(1, C, T, H, W)`` for video networks; a
        list of one image ``(3, 320, 320)`` for torchvision's detectors, whose single argument is
        such a list; a tuple of two images for optical flow, which takes two arguments. None where
        the zoo does not know: for a factory of the user's.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    MissingExtra
        If torchvision or timm is needed and not installed.
    """
    info = entry(name)
    generator = torch.Generator().manual_seed(0)
    if info.input_shape is not None:
        return torch.randn(1, *info.input_shape, generator=generator, device="cpu")
    family, _, network = name.partition("/")
    if family != "torchvision" or ":" in name:
        return None
    if external.facts(family, network).task == "flow":
        return (
            torch.rand(1, 3, 128, 128, generator=generator, device="cpu"),
            torch.rand(1, 3, 128, 128, generator=generator, device="cpu"),
        )
    return [torch.rand(3, 320, 320, generator=generator, device="cpu")]
