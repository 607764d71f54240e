"""CIFAR-10 from zips of PNGs, folders of PNGs, or the original pickled batches; CIFAR-100 from these."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankfold.errors import DataError
from rankfold.zoo.array_cache import cached
from rankfold.zoo.data_sets import DATA_SETS, find_files
from rankfold.zoo.pictures import decode_picture, require_folder
from rankfold.zoo.samples import SampleArray

# In the usual order of the labels.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

# Everything that a pickled dict of arrays, numbers and strings needs; newer versions of NumPy use the second name.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}

Picture = tuple[str, str, Path | bytes]
"""Class, name, and file or content."""


def cifar10(path: str, split: str) -> SampleArray:
    """Return the uint8 images ``(N, 3, 32, 32)`` and labels of a split of CIFAR-10 (Krizhevsky 2009).

    The folder holds ``train*.zip`` and ``test.zip`` of ``<class>/<name>.png``; or folders ``train`` and ``test`` of the
    same; or the original batches, also in ``cifar-10-batches-py``. PNGs are decoded once and cached; they are sorted by
    class and name.
    """
    root = require_folder(path, "CIFAR-10 folder", "cifar10")
    zips = sorted(root.glob(f"{split}*.zip"))
    if zips or (root / split).is_dir():
        files = zips or sorted((root / split).glob("*/*.png"))
        pictures = _zipped(zips) if zips else ((file.parent.name, file.name, file) for file in files)
        return cached(f"cifar10-{split}", files, lambda: _decode(pictures, root, split))
    for folder in (root, root / "cifar-10-batches-py"):
        batches = [folder / name for name in _BATCHES[split] if (folder / name).is_file()]
        if batches:
            return _read_batches(batches, b"labels")
    raise DataError(
        f"there are no {split} images of CIFAR-10 in {path!r}: expected {split}*.zip, a folder "
        f"{split!r} of <class>/<name>.png, or the original 'cifar-10-batches-py'. {DATA_SETS['cifar10'].download}"
    )


def cifar100(path: str, split: str) -> SampleArray:
    """Return the uint8 images ``(N, 3, 32, 32)`` and fine labels of a split of CIFAR-100 (Krizhevsky 2009).

    The folder holds the original files ``train`` and ``test``, also in ``cifar-100-python``.
    """
    return _read_batches(find_files("cifar100", path, split, split, f"cifar-100-python/{split}"), b"fine_labels")


def _zipped(zips: list[Path]) -> Iterator[Picture]:
    for path in zips:
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    parts = member.split("/")
                    if len(parts) < 2 or not member.endswith(".png") or parts[0] == "__MACOSX":
                        continue
                    yield parts[-2], parts[-1], archive.read(member)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(f"{str(path)!r} is not a complete zip file: {error}. Copy or download it again.") from error


def _decode(pictures: Iterator[Picture], root: Path, split: str) -> SampleArray:
    decoded = []
    for folder, name, source in pictures:
        if folder not in CLASSES:
            raise DataError(
                f"{split} of {str(root)!r} has a class {folder!r} that is not one of CIFAR-10's "
                f"({', '.join(CLASSES)}). Use 'imagefolder:PATH' for other images."
            )
        pixels = decode_picture(source, f"{folder}/{name} of {str(root)!r}")
        if pixels.shape != (3, 32, 32):
            raise DataError(
                f"{folder}/{name} of {str(root)!r} has {pixels.shape[1]}x{pixels.shape[2]} pixels; "
                f"CIFAR-10 has 32x32. Use 'imagefolder:PATH' for other images."
            )
        decoded.append((CLASSES.index(folder), name, pixels))
    if not decoded:
        raise DataError(f"{split} of {str(root)!r} has no files <class>/<name>.png. Add them.")
    decoded.sort(key=lambda item: item[:2])
    labels, _, images = zip(*decoded, strict=True)
    return SampleArray(torch.stack(images), torch.tensor(labels, dtype=torch.int64, device="cpu"))


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays, bytes, numbers and containers; refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR batches do not use")
        # The functions that NumPy names in its pickles, wherever the installed version keeps them.
        if name == "_reconstruct":
            return np.empty(0).__reduce_ex__(2)[0]
        if name == "_frombuffer":
            return np.empty(0).__reduce_ex__(5)[0]
        return super().find_class(module, name)


def _read_batches(files: list[Path], key: bytes) -> SampleArray:
    images, labels = [], []
    for file in files:
        try:
            batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            labels.append(np.asarray(batch[key], dtype=np.int64).reshape(len(pixels)))
            images.append(pixels)
        # A damaged pickle can raise almost any error.
        except Exception as error:
            raise DataError(
                f"{str(file)!r} is not a complete batch of CIFAR: {error or type(error).__name__}. "
                f"Copy or download it again."
            ) from error
    return SampleArray(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))
