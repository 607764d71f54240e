"""Decode one picture with Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from rankfold.errors import DataError, MissingExtra

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


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
) -> Tensor:
    """Return a picture as a uint8 tensor ``(channels, H, W)``.

    Parameters
    ----------
    source : Path or bytes
        The file, or its content.
    label : str
        What the picture is called in error messages.
    channels : {1, 3}
        Grey or RGB; the picture is converted.
    size : (height, width), optional
        Wanted size. A picture of another size is scaled until it covers ``size / 0.875`` and its
        middle is cut out, as usual for ImageNet.

    Raises
    ------
    DataError
        If the file is not a whole picture.
    MissingExtra
        If Pillow is not installed.
    """
    pillow = require_pillow("reading pictures")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture = picture.convert("L" if channels == 1 else "RGB")
    # Pillow raises SyntaxError and ValueError, too, on pictures that are damaged.
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{label} cannot be read as a picture: {error}. Remove or replace it.") from error
    if size is not None and picture.size != (size[1], size[0]):
        height, width = size
        scale = max(height / picture.height, width / picture.width) / 0.875
        large = (
            max(width, round(picture.width * scale)),
            max(height, round(picture.height * scale)),
        )
        picture = picture.resize(large, pillow.Resampling.BILINEAR)
        left, top = (large[0] - width) // 2, (large[1] - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    array = np.array(picture)  # a copy: Pillow's own buffer is read-only
    pixels = torch.from_numpy(array)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
