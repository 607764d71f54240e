"""What the zoo knows about each network: one table of frozen entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from rankfold.errors import UnknownNameError
from rankfold.zoo import external
from rankfold.zoo.cifar_resnet import CifarResNet
from rankfold.zoo.factories import is_factory
from rankfold.zoo.lenet import LeNet5
from rankfold.zoo.vgg import CifarVGG16

# The normalisation that torchvision's networks and the public CIFAR weights were trained with.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """What is known about a network before it is built.

    Attributes
    ----------
    name : str
        The name that `create` takes.
    summary : str
        One line for people.
    data : str or None
        Kind of the default data set, as in ``data("mnist5k", ...)``; a kind such as ``"cifar10"``
        still needs its path. None where no data set belongs to the network.
    input_shape : tuple of int or None
        Shape of one input without the batch dimension; None if unknown or not a single tensor.
    num_classes : int or None
        Number of outputs unless `create` is told otherwise; None if the builder decides.
    mean, std : tuple of float or None
        Per-channel normalisation of pixels in [0, 1]; None where the input is taken as it is.
    bundled : str or None
        File of the weights that come with rankfold (``weights="bundled"``), or None.
    build : callable or None
        Maps the number of classes to a randomly initialised network; None for names that another
        package builds.
    """

    name: str
    summary: str
    data: str | None = None
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bundled: str | None = None
    build: Callable[[int], nn.Module] | None = field(default=None, repr=False, compare=False)


def _cifar(name: str, summary: str, build: Callable[[int], nn.Module]) -> NetworkInfo:
    return NetworkInfo(
        name=name,
        summary=summary,
        data="cifar10",
        input_shape=(3, 32, 32),
        num_classes=10,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        build=build,
    )


_NETWORKS = {
    info.name: info
    for info in (
        NetworkInfo(
            name="lenet5_mnist5k",
            summary="LeNet-5 for 28x28 digits (LeCun et al. 1998), 61,706 parameters",
            data="mnist5k",
            input_shape=(1, 28, 28),
            num_classes=10,
            mean=(0.1307,),
            std=(0.3081,),
            bundled="lenet5_mnist5k.safetensors",
            build=LeNet5,
        ),
        *(
            _cifar(
                f"resnet{depth}_cifar10",
                f"CIFAR ResNet-{depth} (He et al. 2016), option-A shortcuts, {size} parameters",
                partial(CifarResNet, depth),
            )
            for depth, size in ((20, "269,722"), (32, "464,154"), (56, "853,018"))
        ),
        _cifar(
            "vgg16_bn_cifar10",
            "VGG-16 with BatchNorm for 32x32 images (Simonyan & Zisserman 2015), 14,728,266 parameters",
            CifarVGG16,
        ),
    )
}


def names(family: str | None = None) -> list[str]:
    """Return the names that `create` knows.

    Parameters
    ----------
    family : {None, "torchvision", "timm"}
        None lists the zoo's own networks; a package's name lists ``"<package>/<network>"`` for
        every network of that package.

    Raises
    ------
    UnknownNameError
        If there is no such family.
    MissingExtra
        If the package is not installed.
    """
    if family is None:
        return sorted(_NETWORKS)
    if family not in external.FAMILIES:
        raise UnknownNameError("family of networks", family, external.FAMILIES)
    return [f"{family}/{name}" for name in external.network_names(family)]


def entry(name: str) -> NetworkInfo:
    """Return what is known about a network, without building it.

    Parameters
    ----------
    name : str
        Any name that `create` takes. For ``"pkg.module:factory"`` everything but the name is
        unknown.

    Raises
    ------
    UnknownNameError
        If there is no such network; the nearest name is offered.
    MissingExtra
        If the name belongs to a package that is not installed.
    """
    if name in _NETWORKS:
        return _NETWORKS[name]
    family, slash, network = name.partition("/")
    if slash and family in external.FAMILIES and not is_factory(name):
        facts = external.facts(family, network)
        return NetworkInfo(
            name=name,
            summary=f"{network} of {family}",
            input_shape=facts.input_shape,
            mean=facts.mean,
            std=facts.std,
        )
    if is_factory(name):
        return NetworkInfo(name=name, summary="a factory of the user's")
    choices = [*names(), *(f"{f}/NAME" for f in external.FAMILIES), "pkg.module:factory"]
    raise UnknownNameError("network", name, [*choices, "file.py:factory"])
