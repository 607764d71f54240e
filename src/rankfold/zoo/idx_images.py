"""MNIST and Fashion-MNIST from their idx files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from rankfold.errors import DataError
from rankfold.zoo.data_sets import find_files
from rankfold.zoo.samples import SampleArray


def idx_images(kind: str, path: str, split: str) -> SampleArray:
    """Return the uint8 images ``(N, 1, 28, 28)`` and labels of a split of MNIST or Fashion-MNIST (`kind`).

    The folder holds the four files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, compressed (``.gz``) or not, also
    in torchvision's folder ``MNIST/raw`` or ``FashionMNIST/raw``.
    """
    part = "train" if split == "train" else "t10k"
    inner = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[kind]
    images, labels = (
        _read(find_files(kind, path, split, name, f"{inner}/raw/{name}")[0], dimensions)
        for name, dimensions in ((f"{part}-images?idx3-ubyte*", 3), (f"{part}-labels?idx1-ubyte*", 1))
    )
    if len(images) != len(labels):
        raise DataError(
            f"the {split} split in {path!r} has {len(images)} images and {len(labels)} labels. Download both again."
        )
    return SampleArray(torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64)))


def _read(file: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an idx file: four magic bytes, big-endian sizes, and the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"it does not start with the bytes 0, 0, 8, {dimensions}")
        start = 4 + 4 * dimensions
        shape = struct.unpack(f">{dimensions}I", content[4:start])
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{str(file)!r} is not a complete idx file: {error}. Download it again.") from error
