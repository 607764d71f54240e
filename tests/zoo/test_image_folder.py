from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rankfold import zoo
from rankfold.errors import DataError
from rankfold.zoo.pictures import decode_picture


@pytest.fixture(autouse=True)
def _pillow() -> None:
    pytest.importorskip("PIL")


def write(path: Path, shape: tuple[int, ...] = (8, 10, 3), value: int | None = None) -> np.ndarray:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = draw.integers(0, 256, shape, dtype=np.uint8)
    if value is not None:
        pixels[:] = value
    Image.fromarray(pixels).save(path)
    return pixels


def load(path: Path, split: str = "train", **options: Any) -> list[Any]:
    loader = zoo.data(f"imagefolder:{path}", split=split, **options)
    assert isinstance(loader, DataLoader)
    return list(loader)


def test_one_folder_for_all_splits(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "1.png")
    second = write(tmp_path / "b" / "deeper" / "2.PNG")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    for split in ("train", "calibration", "test"):
        ((x, y),) = load(tmp_path, split)
        order = y.argsort()
        assert y[order].tolist() == [0, 1]
        expected = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(x[order], expected)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["test", "val"])
def test_splits(tmp_path: Path, name: str) -> None:
    for folder, classes in (("train", "abc"), (name, "bc")):
        for label in classes:
            write(tmp_path / folder / label / "1.png", value=ord(label))
    ((x, y),) = load(tmp_path, "test")
    assert y.tolist() == [1, 2]  # numbered as in train, though "a" has no test picture
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [ord("b"), ord("c")]
    ((_, y),) = load(tmp_path)
    assert y.tolist() == [0, 1, 2]


def test_test_is_preferred_to_val(tmp_path: Path) -> None:
    for folder, value in (("train", 1), ("val", 2), ("test", 3)):
        write(tmp_path / folder / "a" / "1.png", value=value)
    ((x, _),) = load(tmp_path, "test")
    assert (x * 255).round().unique().tolist() == [3]


def test_grey_networks_get_grey_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", (28, 28, 3))
    write(tmp_path / "a" / "2.png", (28, 28))
    ((x, _),) = load(tmp_path, normalize=zoo.entry("lenet5_mnist5k"))
    assert x.shape == (2, 1, 28, 28)
    ((x, _),) = load(tmp_path)
    assert x.shape == (2, 3, 28, 28)
    assert torch.equal(x[1, 0], x[1, 1])


def test_sizes(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", (20, 30, 3))
    write(tmp_path / "a" / "2.png", (64, 16, 3))
    with pytest.raises(DataError, match=r"64x16 pixels, another picture 20x30. Pass image_size to scale"):
        load(tmp_path)
    ((x, _),) = load(tmp_path, image_size=(12, 16), augment=True)
    assert x.shape == (2, 3, 12, 16)


def test_middle_is_cut_out(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((70, 140, 3), np.uint8)
    pixels[:, 35:105] = 200  # the middle square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = decode_picture(tmp_path / "a.png", "a", size=(28, 28))
    assert out.shape == (3, 28, 28)
    assert out.eq(200).all()
    wide = decode_picture(tmp_path / "a.png", "a", size=(28, 56))
    assert wide[0, 0, [0, -1]].tolist() == [0, 0]
    exact = decode_picture(tmp_path / "a.png", "a", size=(70, 140))
    assert torch.equal(exact, torch.from_numpy(pixels).permute(2, 0, 1))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no class folders"):
        load(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="has no pictures in its class folders"):
        load(tmp_path)
    write(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match="no folder 'test' or 'val' for the test split"):
        load(tmp_path, "test")
    write(tmp_path / "test" / "b" / "1.png")
    with pytest.raises(DataError, match=r"has classes that .*train' lacks: b"):
        load(tmp_path, "test")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "file")


def test_damaged_picture(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "a" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"1\.png' cannot be read as a picture"):
            load(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(whole)
    load(tmp_path)
