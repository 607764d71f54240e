"""Networks by name, with facts and an example input for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rankfold.errors import ModelError, UnknownNameError
from rankfold.zoo import external
from rankfold.zoo.cifar_stems import with_cifar_stem
from rankfold.zoo.data_sets import DATA_SETS
from rankfold.zoo.factories import call_factory, is_factory
from rankfold.zoo.info import NetworkInfo
from rankfold.zoo.networks import CifarResNet, CifarVGG16, LeNet5
from rankfold.zoo.sequential_networks import alexnet, m5, traffic, vgg, voxnet

# Arguments of a network: a tuple holds positional arguments, a dict holds keyword arguments, and anything else,
# including a list, is the single argument.
ExampleInput = Tensor | list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]


_DIGITS, _CIFAR, _MODELNET = ("mnist5k", "mnist", "fashionmnist"), ("cifar10", "cifar100"), ("modelnet10", "modelnet40")
_BUNDLED = ("lenet5_mnist5k",)
# Name, description, constructor, parameters without those of the classes, parameters of each class, data sets.
_TABLE: tuple[tuple[str, str, Callable[[int], nn.Module], int, int, tuple[str, ...]], ...] = (
    ("lenet5", "LeNet-5 for 28x28 images (LeCun et al. 1998)", LeNet5, 60_856, 85, _DIGITS),
    ("lenet5_half", "LeNet-5 of half the width, for distillation", partial(LeNet5, divide=2), 15_308, 43, _DIGITS),
    ("alexnet", "AlexNet (Krizhevsky et al. 2012)", alexnet, 23_231_296, 4097, _CIFAR),
    ("vgg11", "VGG-11 (Simonyan & Zisserman 2015)", partial(vgg, 11), 28_103_040, 4097, _CIFAR),
    ("vgg16", "VGG-16 (Simonyan & Zisserman 2015)", partial(vgg, 16), 33_597_248, 4097, _CIFAR),
    ("vgg19", "VGG-19 (Simonyan & Zisserman 2015)", partial(vgg, 19), 38_906_944, 4097, _CIFAR),
    ("vgg16_bn", "VGG-16 with BatchNorm (Simonyan & Zisserman 2015)", CifarVGG16, 14_723_136, 513, _CIFAR),
    ("resnet20", "CIFAR ResNet-20 (He et al. 2016), option-A shortcuts", partial(CifarResNet, 20), 269_072, 65, _CIFAR),
    ("resnet32", "CIFAR ResNet-32 (He et al. 2016), option-A shortcuts", partial(CifarResNet, 32), 463_504, 65, _CIFAR),
    ("resnet56", "CIFAR ResNet-56 (He et al. 2016), option-A shortcuts", partial(CifarResNet, 56), 852_368, 65, _CIFAR),
    ("resnet18", "ResNet-18 (He et al. 2016)", partial(with_cifar_stem, "resnet18"), 11_168_832, 513, _CIFAR),
    ("resnet34", "ResNet-34 (He et al. 2016)", partial(with_cifar_stem, "resnet34"), 21_276_992, 513, _CIFAR),
    ("resnet50", "ResNet-50 (He et al. 2016)", partial(with_cifar_stem, "resnet50"), 23_500_352, 2049, _CIFAR),
    ("googlenet", "GoogLeNet (Szegedy et al. 2015)", partial(with_cifar_stem, "googlenet"), 5_592_224, 1025, _CIFAR),
    ("squeezenet", "SqueezeNet (Iandola et al. 2016)", partial(with_cifar_stem, "squeezenet1_1"), 722_496, 513, _CIFAR),
    ("densenet121", "DenseNet (Huang et al. 2017)", partial(with_cifar_stem, "densenet121"), 6_946_176, 1025, _CIFAR),
    ("traffic", "traffic-sign network (Ciresan et al. 2012)", traffic, 1_530_500, 301, ("gtsrb",)),
    ("voxnet", "VoxNet for 32x32x32 voxels (Maturana & Scherer 2015)", voxnet, 916_576, 129, _MODELNET),
    ("m5", "M5 for one second of audio at 8 kHz (Dai et al. 2017)", m5, 553_984, 513, ("speechcommands",)),
)  # fmt: skip


def _infos() -> Iterator[NetworkInfo]:
    """Yield the facts about each network of the table on each of its data sets."""
    for network, summary, build, params, per_class, kinds in _TABLE:
        for kind in kinds:
            data, name = DATA_SETS[kind], f"{network}_{kind}"
            yield NetworkInfo(
                name=name,
                summary=f"{summary}, {params + per_class * data.classes:,} parameters",
                data=kind,
                task=("audio", "image", "voxels")[len(data.shape) - 2],
                input_shape=data.shape,
                num_classes=data.classes,
                mean=data.mean,
                std=data.std,
                bundled=f"{name}.safetensors" if name in _BUNDLED else None,
                build=partial(_build, build, data.classes),
            )


def _build(build: Callable[[int], nn.Module], classes: int, num_classes: int | None) -> nn.Module:
    return build(classes if num_classes is None else num_classes)


_NETWORKS = {info.name: info for info in _infos()}


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
        A tensor ``(1, C, H, W)`` for images, ``(1, C, T)`` for audio, ``(1, C, D, H, W)`` for voxels and
        ``(1, C, T, H, W)`` for video; a list of one image ``(3, 320, 320)`` for torchvision's detectors, whose single
        argument is such a list; a tuple of two images for optical flow, which takes two arguments. None for a
        user-defined factory, whose input is unknown.

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
