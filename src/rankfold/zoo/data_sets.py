"""Facts about the data sets that networks of the zoo are for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankfold.zoo.info import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """Facts about a data set.

    Attributes
    ----------
    shape : tuple of int
        Channels and one to three spatial sizes of a sample.
    classes : int
        Number of classes.
    mean, std : tuple of float
        Per-channel normalisation of samples in [0, 1], or in [-1, 1] for audio.
    """

    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_DIGITS = DataInfo(shape=(1, 28, 28), classes=10, mean=(0.1307,), std=(0.3081,))
_MODELNET10 = DataInfo(shape=(1, 32, 32, 32), classes=10, mean=(0.5,), std=(0.5,))
# The public CIFAR-10 weights were trained with the normalisation of ImageNet.
_CIFAR10 = DataInfo(shape=(3, 32, 32), classes=10, mean=IMAGENET_MEAN, std=IMAGENET_STD)

DATA_SETS = {
    "mnist5k": _DIGITS,
    "mnist": _DIGITS,
    "fashionmnist": replace(_DIGITS, mean=(0.2860,), std=(0.3530,)),
    "cifar10": _CIFAR10,
    "cifar100": replace(_CIFAR10, classes=100),
    "gtsrb": DataInfo(shape=(3, 48, 48), classes=43, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "speechcommands": DataInfo(shape=(1, 8000), classes=35, mean=(0.0,), std=(1.0,)),
    "modelnet10": _MODELNET10,
    "modelnet40": replace(_MODELNET10, classes=40),
}
