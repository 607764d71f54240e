"""Pictures on disk, decoded with Pillow."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rankfold.errors import DataError, MissingExtra
from rankfold.zoo.samples import Preparation, Sample

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


def require_pillow(feature: str) -> ModuleType:
    """Return Pillow's ``Image`` module, or raise `MissingExtra` for the feature."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(feature, "vision", "pillow") from error
    return Image


def decode_picture(
    source: Path | bytes,
    label: str,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Return a picture as a uint8 tensor ``(channels, H, W)``, converted to gray (1 channel) or RGB (3).

    With `box` (left, top, right, bottom), that part is scaled to `size` (height, width). Otherwise, a picture that does
    not have `size` is scaled until it covers ``size / 0.875`` and cropped at the center, as is usual for ImageNet. A
    file that cannot be decoded raises `DataError`, which calls it `label`.
    """
    pillow = require_pillow("reading pictures")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture = picture.convert("L" if channels == 1 else "RGB")
            if box is not None and size is not None:
                picture = picture.resize(size[::-1], pillow.Resampling.BILINEAR, box=box)
    # Pillow also raises SyntaxError and ValueError for damaged pictures.
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{label} cannot be read as a picture: {error}. Remove or replace it.") from error
    if size is not None and picture.size != (size[1], size[0]):
        height, width = size
        scale = max(height / picture.height, width / picture.width) / 0.875
        large = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        left, top = (large[0] - width) // 2, (large[1] - height) // 2
        picture = picture.resize(large, pillow.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(picture))  # a copy: Pillow's own buffer is read-only
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def require_folder(path: str, what: str, spec: str) -> Path:
    """Return a data set's folder; raise `DataError` if it is missing."""
    root = Path(path).expanduser()
    if not os.path.isdir(root):
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"the {what} {path!r} {problem}. Pass it as '{spec}:PATH'.")
    return root


class ImageFolder(Dataset[Sample]):
    """Pictures in class folders below ``train`` and ``test`` (or ``val``), or in class folders for all splits.

    Pictures are decoded when they are accessed. Labels number the class folders in alphabetical order (those of
    ``train`` if it exists). Without `size` (height, width) all pictures must have one size.
    """

    def __init__(
        self, path: str, split: str, prepare: Preparation, *, channels: int, size: tuple[int, int] | None
    ) -> None:
        require_pillow("reading a folder of pictures")
        folder, named_by = _folders(path, split)
        self.prepare, self.channels, self.size = prepare, channels, size
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
            if file.suffix.lower() in _SUFFIXES
        ]
        if not self.samples:
            raise DataError(f"{str(folder)!r} has no pictures in its class folders ({', '.join(_SUFFIXES)}).")
        self._first_size: torch.Size | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return ``(image (C, H, W), label)``."""
        file, label = self.samples[index]
        pixels = decode_picture(file, repr(str(file)), channels=self.channels, size=self.size)
        self._first_size = self._first_size or pixels.shape
        if pixels.shape != self._first_size:
            raise DataError(
                f"{str(file)!r} has {pixels.shape[1]}x{pixels.shape[2]} pixels, another picture "
                f"{self._first_size[1]}x{self._first_size[2]}. Pass image_size to scale all pictures to one size."
            )
        return self.prepare(pixels[None])[0], torch.tensor(label, device="cpu")


def _folders(path: str, split: str) -> tuple[Path, Path]:
    """Return the folder of the split, and the folder whose class folders number the labels."""
    root = require_folder(path, "folder of pictures", "imagefolder")
    folders = {
        name: root / folder
        for name, choices in _SPLIT_FOLDERS.items()
        for folder in reversed(choices)  # the first one that exists takes precedence
        if (root / folder).is_dir()
    }
    if not folders:
        return root, root
    if split not in folders:
        wanted = " or ".join(map(repr, _SPLIT_FOLDERS[split]))
        raise DataError(f"{path!r} has no folder {wanted} for the {split} split.")
    return folders[split], folders.get("train", folders[split])


def _classes(folder: Path) -> list[str]:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if not classes:
        raise DataError(f"{str(folder)!r} has no class folders: expected <class>/<picture>.")
    return classes
