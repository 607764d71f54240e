"""CIFAR-10 from zips of PNGs, folders of PNGs, or the original pickled batches."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from rankfold.errors import DataError
from rankfold.zoo.array_cache import cached
from rankfold.zoo.cifar10_batches import find_batches, read_batches
from rankfold.zoo.image_sets import ImageArray
from rankfold.zoo.pictures import decode_picture, require_pillow

# The usual label order, which is the alphabetical one.
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def cifar10(path: str, split: str) -> ImageArray:
    """Return the images of CIFAR-10 that lie under a path.

    Parameters
    ----------
    path : str
        A folder with ``train*.zip`` and ``test.zip`` of ``<class>/<name>.png``; or with folders
        ``train`` and ``test`` of the same; or the original ``cifar-10-batches-py``, or the folder
        that holds it. PNGs are decoded once and kept in rankfold's cache folder; they come in the
        order of their class and name, whether zipped or not.
    split : {"train", "test"}
        Which images.

    Returns
    -------
    ImageArray
        uint8 images ``(N, 3, 32, 32)`` and labels in the usual, alphabetical order.

    Raises
    ------
    DataError
        If nothing of the split lies there, or it cannot be read.
    MissingExtra
        If Pillow is needed and not installed.

    References
    ----------
    A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    root = Path(path).expanduser()
    if not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"the CIFAR-10 folder {path!r} {what}. Give it as 'cifar10:PATH'.")
    zips = sorted(root.glob(f"{split}*.zip"))
    if zips:
        require_pillow("reading CIFAR-10 from PNGs")
        return cached(f"cifar10-{split}", zips, lambda: _decode(_zipped(zips), root, split))
    if (root / split).is_dir():
        require_pillow("reading CIFAR-10 from PNGs")
        files = sorted((root / split).glob("*/*.png"))
        return cached(f"cifar10-{split}", files, lambda: _decode(_unzipped(files), root, split))
    batches = find_batches(root, split)
    if batches:
        return read_batches(batches)
    raise DataError(
        f"there are no {split} images of CIFAR-10 in {path!r}: expected {split}*.zip, a folder "
        f"{split!r} of <class>/<name>.png, or the original 'cifar-10-batches-py'."
    )


Picture = tuple[str, str, Path | bytes]  # class, name, file or content


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
            raise DataError(f"{str(path)!r} is not a whole zip file: {error}. Copy or download it again.") from error


def _unzipped(files: list[Path]) -> Iterator[Picture]:
    for file in files:
        yield file.parent.name, file.name, file


def _decode(pictures: Iterator[Picture], root: Path, split: str) -> ImageArray:
    decoded = []
    for folder, name, source in pictures:
        if folder not in CLASSES:
            raise DataError(
                f"{split} of {str(root)!r} has a class {folder!r} that is none of CIFAR-10's "
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
        raise DataError(f"{split} of {str(root)!r} holds no <class>/<name>.png. Fill it.")
    decoded.sort(key=lambda item: item[:2])
    return ImageArray(
        torch.stack([pixels for _, _, pixels in decoded]),
        torch.tensor([label for label, _, _ in decoded], dtype=torch.int64, device="cpu"),
    )
