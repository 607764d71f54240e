"""CIFAR-10's original pickled batches, read without letting the pickle run anything."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankfold.errors import DataError
from rankfold.zoo.image_sets import ImageArray

_FILES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
# All that a pickled dict of arrays, numbers and strings needs; NumPy moved its module since.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays, bytes, numbers and containers; refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch holds")
        # The functions that NumPy names in its pickles, wherever this version keeps them.
        if name == "_reconstruct":
            return np.empty(0).__reduce_ex__(2)[0]
        if name == "_frombuffer":
            return np.empty(0).__reduce_ex__(5)[0]
        return super().find_class(module, name)


def find_batches(root: Path, split: str) -> list[Path]:
    """Return the batch files of a split that lie in a folder or its ``cifar-10-batches-py``."""
    for folder in (root, root / "cifar-10-batches-py"):
        found = [folder / name for name in _FILES[split] if (folder / name).is_file()]
        if found:
            return found
    return []


def read_batches(files: list[Path]) -> ImageArray:
    """Return the images of batch files, in their order.

    Raises
    ------
    DataError
        If a file is truncated, is something else, or holds other objects than arrays.
    """
    images, labels = [], []
    for file in files:
        try:
            batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64).reshape(len(pixels)))
            images.append(pixels)
        # A damaged pickle can raise nearly anything.
        except Exception as error:
            raise DataError(
                f"{str(file)!r} is not a whole batch of CIFAR-10: {error or type(error).__name__}. "
                f"Copy or download it again."
            ) from error
    return ImageArray(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))
