"""A folder with one folder of pictures per class."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.utils.data import Dataset

from rankfold.errors import DataError
from rankfold.zoo.image_sets import Preparation, Sample
from rankfold.zoo.pictures import SUFFIXES, decode_picture, require_pillow

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


class ImageFolder(Dataset[Sample]):
    """Pictures on disk, decoded when they are needed.

    Parameters
    ----------
    path : str
        ``PATH/train/<class>/...`` and ``PATH/test`` (or ``val``); or, without these,
        ``PATH/<class>`` for all splits. Labels number the class folders in alphabetical order
        (those of ``train`` where it exists).
    split : {"train", "test"}
        Which pictures.
    prepare : Preparation
        Applied to each picture.
    channels : {1, 3}
        Grey or RGB.
    size : (height, width), optional
        Each picture is scaled and cropped to this size; without it all must have one size.

    Raises
    ------
    DataError
        If the folder is missing or empty, or a picture cannot be read.
    MissingExtra
        If Pillow is not installed.
    """

    def __init__(
        self,
        path: str,
        split: str,
        prepare: Preparation,
        *,
        channels: int,
        size: tuple[int, int] | None,
    ) -> None:
        require_pillow("reading a folder of pictures")
        folder, named_by = _folders(path, split)
        self.prepare = prepare
        self.channels = channels
        self.size = size
        self.classes = _classes(named_by)
        unknown = sorted(set(_classes(folder)) - set(self.classes))
        if unknown:
            raise DataError(
                f"{str(folder)!r} has classes that {str(named_by)!r} lacks: {', '.join(unknown)}. "
                f"Both need the same class folders."
            )
        self.samples = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not self.samples:
            raise DataError(f"{str(folder)!r} holds no pictures in class folders ({', '.join(SUFFIXES)}).")
        self._first_size: torch.Size | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one ``(image (C, H, W), label)``."""
        file, label = self.samples[index]
        pixels = decode_picture(file, repr(str(file)), channels=self.channels, size=self.size)
        self._first_size = self._first_size or pixels.shape
        if pixels.shape != self._first_size:
            raise DataError(
                f"{str(file)!r} has {pixels.shape[1]}x{pixels.shape[2]} pixels, another picture "
                f"{self._first_size[1]}x{self._first_size[2]}. Pass image_size to bring all to one."
            )
        return self.prepare(pixels[None])[0], torch.tensor(label, device="cpu")


def _folders(path: str, split: str) -> tuple[Path, Path]:
    """Return the folder of the split, and the one whose class folders number the labels."""
    root = Path(path).expanduser()
    if not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"{path!r} {what}. Give a folder of pictures as 'imagefolder:PATH'.")
    found = {
        name: root / folder
        for name, folders in _SPLIT_FOLDERS.items()
        for folder in reversed(folders)  # the first that exists wins
        if (root / folder).is_dir()
    }
    if not found:
        return root, root
    if split not in found:
        wanted = " or ".join(repr(f) for f in _SPLIT_FOLDERS[split])
        raise DataError(f"{path!r} has no folder {wanted} for the {split} split.")
    return found[split], found.get("train", found[split])


def _classes(folder: Path) -> list[str]:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if not classes:
        raise DataError(f"{str(folder)!r} has no class folders: expected <class>/<picture>.")
    return classes
