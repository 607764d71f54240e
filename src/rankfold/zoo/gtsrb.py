"""The German Traffic Sign Recognition Benchmark from its PPM pictures and CSV tables."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from rankfold._progress import track
from rankfold.errors import DataError
from rankfold.zoo.array_cache import cached
from rankfold.zoo.data_sets import DATA_SETS, find_files
from rankfold.zoo.pictures import decode_picture
from rankfold.zoo.samples import SampleArray

_CORNERS = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
_TABLES = {
    "train": ("GTSRB/Final_Training/Images/*/GT-*.csv", "GTSRB/Training/*/GT-*.csv", "gtsrb/GTSRB/Training/*/GT-*.csv"),
    "test": ("GT-final_test.csv", "GTSRB/Final_Test/Images/GT-final_test.csv", "gtsrb/GT-final_test.csv"),
}

Sign = tuple[Path, tuple[int, int, int, int], int]
"""File, bounding box and class."""


def gtsrb(path: str, split: str) -> SampleArray:
    """Return the uint8 images ``(N, 3, 48, 48)`` and labels of a split of GTSRB (Stallkamp et al. 2012).

    The folder holds the unpacked archives of the final benchmark, also in torchvision's folder ``gtsrb``. Each sign is
    cut out along its bounding box in the table and scaled to 48x48 pixels, as in Cireşan et al. 2012. The images are
    cached.
    """
    tables = find_files("gtsrb", path, split, *_TABLES[split])
    signs = [sign for table in tables for sign in _signs(table)]
    return cached(f"gtsrb-{split}", [*tables, *(file for file, _, _ in signs)], lambda: _decode(signs))


def _signs(table: Path) -> Iterator[Sign]:
    folder = table.parent
    if table.name == "GT-final_test.csv" and folder.name != "Images":
        folder = folder / "GTSRB" / "Final_Test" / "Images"
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, delimiter=";"):
                left, top, right, bottom = (int(row[name]) for name in _CORNERS)
                yield folder / row["Filename"], (left, top, right, bottom), int(row["ClassId"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{str(table)!r} is not a table of GTSRB: {error}. Unpack it again.") from error


def _decode(signs: list[Sign]) -> SampleArray:
    channels, height, width = DATA_SETS["gtsrb"].shape
    images = torch.empty(len(signs), channels, height, width, dtype=torch.uint8, device="cpu")
    for image, (file, box, _) in zip(images, track(signs, "pictures"), strict=True):
        image[:] = decode_picture(file, repr(str(file)), size=(height, width), box=box)
    return SampleArray(images, torch.tensor([label for _, _, label in signs], dtype=torch.int64, device="cpu"))
