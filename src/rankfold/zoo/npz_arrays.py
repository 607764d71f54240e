"""Images from a NumPy ``.npz`` file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from rankfold.errors import DataError
from rankfold.zoo.samples import SampleArray


def npz_arrays(path: str, split: str) -> SampleArray:
    """Return the images and labels of a split from the arrays ``x_<split>`` and ``y_<split>``, or ``x`` and ``y``.

    Images are uint8 in [0, 255], or float in [0, 1] before normalization, of shape ``(N, H, W)``, ``(N, C, H, W)`` or
    ``(N, H, W, C)`` with 1 or 3 channels. Labels are integers ``(N,)``.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        raise DataError(f"there is no file {path!r}. Pass an existing one as 'npz:PATH'.")
    try:
        with file.open("rb") as stream:  # np.load does not close a damaged file
            images, labels, names = _read(stream, path, split)
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path!r} is not a complete .npz file of plain arrays: {error}. Save it again.") from error
    return SampleArray(
        torch.from_numpy(_images(images, f"{names[0]} of {path!r}")),
        torch.from_numpy(_labels(labels, f"{names[1]} of {path!r}", len(images))),
    )


def _read(stream: BinaryIO, path: str, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    archive = np.load(stream, allow_pickle=False)
    if not isinstance(archive, NpzFile):
        raise DataError(f"{path!r} is a single array, not an .npz file. Use numpy.savez.")
    with archive:
        for names in ((f"x_{split}", f"y_{split}"), ("x", "y")):
            if set(names) <= set(archive.files):
                return archive[names[0]], archive[names[1]], names
        raise DataError(
            f"{path!r} contains the arrays {', '.join(archive.files) or '(none)'}; expected "
            f"x_{split} and y_{split}, or x and y."
        )


def _images(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        pixels = array
    elif np.issubdtype(array.dtype, np.floating):
        pixels = array.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise DataError(f"{name} contains NaN or infinity. Remove these images.")
    else:
        raise DataError(f"{name} must be uint8 or float. Got {array.dtype} instead.")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4:
        first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{name} has the shape {array.shape}: it is not clear which axis "
                f"holds the 1 or 3 channels. Save it as (N, C, H, W) or (N, H, W, C), or write a data factory."
            )
        pixels = pixels if first else pixels.transpose(0, 3, 1, 2)
    else:
        raise DataError(f"{name} has the shape {array.shape}. Save images as (N, H, W), (N, C, H, W) or (N, H, W, C).")
    if pixels.size == 0:
        raise DataError(f"{name} is empty: its shape is {array.shape}. Save at least one image.")
    return np.ascontiguousarray(pixels)


def _labels(array: np.ndarray, name: str, count: int) -> np.ndarray:
    if array.shape not in ((count,), (count, 1)):
        raise DataError(f"{name} has the shape {array.shape}. Save one label per image, in the shape ({count},).")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} must contain integers. Got {array.dtype} instead. Convert the labels.")
    labels = array.reshape(count).astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"{name} contains the negative label {labels.min()}. Labels start at 0. Renumber them.")
    return labels
