"""Facts about data sets, and the search for their files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rankfold.errors import DataError
from rankfold.zoo.info import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """Facts about a data set.

    Attributes
    ----------
    title : str
        Its name in messages.
    download : str
        A sentence that says which files to download, where from and where to.
    shape : tuple of int
        Channels and one to three spatial sizes of a sample.
    classes : int
        Number of classes.
    mean, std : tuple of float
        Per-channel normalization of samples in [0, 1], or in [-1, 1] for audio.
    """

    title: str
    download: str
    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_MNIST = DataInfo(
    title="MNIST",
    download="Download the four .gz files of 'The MNIST database of handwritten digits' (LeCun) into this folder.",
    shape=(1, 28, 28),
    classes=10,
    mean=(0.1307,),
    std=(0.3081,),
)
_CIFAR10 = DataInfo(
    title="CIFAR-10",
    download="Unpack the Python version from 'The CIFAR-10 and CIFAR-100 datasets' (Krizhevsky) in this folder.",
    shape=(3, 32, 32),
    classes=10,
    mean=IMAGENET_MEAN,  # the public weights were trained with it
    std=IMAGENET_STD,
)
_MODELNET10 = DataInfo(
    title="ModelNet10",
    download="Unpack ModelNet10.zip from 'Princeton ModelNet' (Princeton University) in this folder.",
    shape=(1, 32, 32, 32),
    classes=10,
    mean=(0.5,),
    std=(0.5,),
)
DATA_SETS = {
    "mnist5k": _MNIST,
    "mnist": _MNIST,
    "fashionmnist": replace(
        _MNIST,
        title="Fashion-MNIST",
        download="Download the four .gz files of 'Fashion-MNIST' (Zalando Research) into this folder.",
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": _CIFAR10,
    "cifar100": replace(_CIFAR10, title="CIFAR-100", classes=100),
    "gtsrb": DataInfo(
        title="GTSRB",
        download="Unpack GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip from "
        "'German Traffic Sign Benchmarks' (Ruhr-Universität Bochum) in this folder.",
        shape=(3, 48, 48),
        classes=43,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "speechcommands": DataInfo(
        title="Speech Commands",
        download="Unpack speech_commands_v0.02.tar.gz from 'Speech Commands' (Google) in this folder.",
        shape=(1, 8000),
        classes=35,
        mean=(0.0,),
        std=(1.0,),
    ),
    "modelnet10": _MODELNET10,
    "modelnet40": replace(
        _MODELNET10,
        title="ModelNet40",
        download=_MODELNET10.download.replace("ModelNet10", "ModelNet40"),
        classes=40,
    ),
}


def find_files(kind: str, path: str, split: str, *patterns: str) -> list[Path]:
    """Return the files below `path` that match the first pattern with a match, sorted.

    Raises
    ------
    DataError
        If no pattern has a match; the message says what to download and where to put it.
    """
    root = Path(path).expanduser()
    for pattern in patterns:
        files = sorted(file for file in root.glob(pattern) if file.is_file())
        if files:
            return files
    info = DATA_SETS[kind]
    raise DataError(
        f"there is no {split} split of {info.title} in {path!r}: expected {' or '.join(map(repr, patterns))}. "
        f"{info.download}"
    )
