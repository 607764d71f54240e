"""Networks by name, with facts and an example input for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError, UnknownNameError
from rankfold.zoo import external
from rankfold.zoo.factories import call_factory, is_factory
from rankfold.zoo.info import IMAGENET_MEAN, IMAGENET_STD, NetworkInfo
from rankfold.zoo.networks import CifarResNet, CifarVGG16, LeNet5

# Arguments of a network: a tuple holds positional arguments, a dict holds keyword arguments, and anything else,
# including a list, is the single argument.
ExampleInput = Tensor | list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]


def _own(name: str, summary: str, data: str, network: Callable[[int], nn.Module], **facts: Any) -> NetworkInfo:
    def build(num_classes: int | None) -> nn.Module:
        return network(10 if num_classes is None else num_classes)

    return NetworkInfo(name=name, summary=summary, data=data, task="image", num_classes=10, build=build, **facts)


# The public CIFAR-10 weights were trained with the normalisation of ImageNet.
_CIFAR10: dict[str, Any] = {"input_shape": (3, 32, 32), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_NETWORKS = {
    info.name: info
    for info in (
        _own(
            "lenet5_mnist5k",
            "LeNet-5 for 28x28 digits (LeCun et al. 1998), 61,706 parameters",
            "mnist5k",
            LeNet5,
            input_shape=(1, 28, 28),
            mean=(0.1307,),
            std=(0.3081,),
            bundled="lenet5_mnist5k.safetensors",
        ),
        *(
            _own(
                f"resnet{depth}_cifar10",
                f"CIFAR ResNet-{depth} (He et al. 2016), option-A shortcuts, {size} parameters",
                "cifar10",
                partial(CifarResNet, depth),
                **_CIFAR10,
            )
            for depth, size in ((20, "269,722"), (32, "464,154"), (56, "853,018"))
        ),
        _own(
            "vgg16_bn_cifar10",
            "VGG-16 with BatchNorm for 32x32 images (Simonyan & Zisserman 2015), 14,728,266 parameters",
            "cifar10",
            CifarVGG16,
            **_CIFAR10,
        ),
    )
}


def names(family: str | None = None) -> list[str]:
    """Return the names that `create` accepts.

    Parameters
    ----------
    family : {None, "torchvision", "timm"}
        None lists the zoo's own networks; the name of a package lists ``"<package>/<network>"`` for each of its
        networks.

    Raises
    ------
    UnknownNameError
        If `family` is not one of these.
    MissingExtra
        If the package is not installed.
    """
    if family is None:
        return sorted(_NETWORKS)
    if family not in external.FAMILIES:
        raise UnknownNameError("network family", family, external.FAMILIES)
    return [f"{family}/{name}" for name in external.network_names(family)]


def entry(name: str) -> NetworkInfo:
    """Return the facts about a network without building it.

    Parameters
    ----------
    name : str
        Any name that `create` accepts. For ``"pkg.module:factory"`` only the name is known.

    Raises
    ------
    UnknownNameError
        If there is no such network; the message suggests the nearest name.
    MissingExtra
        If the network belongs to a package that is not installed.
    """
    if name in _NETWORKS:
        return _NETWORKS[name]
    if is_factory(name):
        return NetworkInfo(name=name, summary="user-defined factory", build=partial(_build_with_factory, name))
    family, slash, network = name.partition("/")
    if slash and family in external.FAMILIES:
        return external.network_info(family, network)
    choices = [*names(), *(f"{f}/NAME" for f in external.FAMILIES), "pkg.module:factory", "file.py:factory"]
    raise UnknownNameError("network", name, choices)


def _build_with_factory(name: str, num_classes: int | None) -> nn.Module:
    model = call_factory(name, **({} if num_classes is None else {"num_classes": num_classes}))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name!r} must return a torch.nn.Module. Got {type(model).__name__} instead.")
    return model


def example_input(name: str) -> ExampleInput | None:
    """Return an input for the network of this name; the same one in every call.

    Parameters
    ----------
    name : str
        Any name that `create` accepts.

    Returns
    -------
    Tensor, list, tuple or None
        A tensor ``(1, C, H, W)`` for image networks and ``(1, C, T, H, W)`` for video networks; a list of one image
        ``(3, 320, 320)`` for torchvision's detectors, whose single argument is such a list; a tuple of two images for
        optical flow, which takes two arguments. None for a user-defined factory, whose input is unknown.

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
    if info.task == "flow":
        first, second = (torch.rand(1, 3, 128, 128, generator=generator, device="cpu") for _ in range(2))
        return first, second
    return [torch.rand(3, 320, 320, generator=generator, device="cpu")] if info.task == "detection" else None
