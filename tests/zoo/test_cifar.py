from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankfold.errors import DataError, MissingExtra, RankfoldWarning
from rankfold.zoo.array_cache import cache_folder
from rankfold.zoo.cifar import CLASSES, cifar10
from rankfold.zoo.samples import SampleArray

Picture = tuple[str, str, np.ndarray]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("PIL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rankfold"


@pytest.fixture
def pictures() -> list[Picture]:
    draw = np.random.default_rng(0)
    return [
        (name, f"{name}_{i}.png", draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for name in CLASSES
        for i in range(3)
    ]


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, pictures: list[Picture], root: str = "") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}README.txt", "no picture")
        archive.writestr("__MACOSX/airplane/x.png", "no picture either")
        for folder, name, pixels in pictures:
            archive.writestr(f"{root}{folder}/{name}", png(pixels))


def write_folders(root: Path, pictures: list[Picture]) -> None:
    for folder, name, pixels in pictures:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(png(pixels))


def assert_holds(data: SampleArray, pictures: list[Picture]) -> None:
    assert data.inputs.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.inputs.shape == (len(pictures), 3, 32, 32)
    for i, (folder, _, pixels) in enumerate(pictures):
        assert CLASSES[int(data.labels[i])] == folder
        assert np.array_equal(data.inputs[i].permute(1, 2, 0).numpy(), pixels)


def test_zips(tmp_path: Path, pictures: list[Picture]) -> None:
    write_zip(tmp_path / "train-0.zip", pictures[1::2])
    write_zip(tmp_path / "train-1.zip", pictures[::2], root="some/folder/")
    write_zip(tmp_path / "test.zip", pictures[:2])
    assert_holds(cifar10(str(tmp_path), "train"), pictures)
    assert_holds(cifar10(str(tmp_path), "test"), pictures[:2])
    with pytest.raises(AssertionError):  # the check itself sees a wrong order
        assert_holds(cifar10(str(tmp_path), "train"), pictures[::-1])


def test_folders_give_what_zips_give(tmp_path: Path, pictures: list[Picture]) -> None:
    write_folders(tmp_path / "train", pictures)
    assert_holds(cifar10(str(tmp_path), "train"), pictures)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_original_batches(tmp_path: Path, pictures: list[Picture], protocol: int, inner: str) -> None:
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    for i in range(5):
        write_batch(folder / f"data_batch_{i + 1}", pictures[i * 6 : i * 6 + 6], protocol)
    write_batch(folder / "test_batch", pictures[:4], protocol)
    assert_holds(cifar10(str(tmp_path), "train"), pictures)
    assert_holds(cifar10(str(tmp_path), "test"), pictures[:4])


def write_batch(path: Path, pictures: list[Picture], protocol: int) -> None:
    data = np.stack([pixels.transpose(2, 0, 1).reshape(-1) for _, _, pixels in pictures])
    labels = [CLASSES.index(folder) for folder, _, _ in pictures]
    path.write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol=protocol))


def test_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    # Names and strings as in the original files: NumPy's old module, and text as 8-bit strings.
    array = np.arange(3072, dtype=np.uint32).astype(np.uint8).reshape(1, 3072)
    blob = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
        + array.tobytes()
        + b"tbU\x06labelsq\x08]q\x09K\x07au."
    )
    (tmp_path / "test_batch").write_bytes(blob)
    data = cifar10(str(tmp_path), "test")
    assert torch.equal(data.inputs.flatten(), torch.from_numpy(array).flatten())
    assert data.labels.tolist() == [7]


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "executed"),)


def test_batches_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Trap(tmp_path), b"labels": []}))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.mkdir"):
        cifar10(str(tmp_path), "test")
    assert not (tmp_path / "executed").exists()


def test_broken_batches(tmp_path: Path, pictures: list[Picture]) -> None:
    path = tmp_path / "test_batch"
    write_batch(path, pictures, 2)
    whole = path.read_bytes()
    for length in (0, 1, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a complete batch"):
            cifar10(str(tmp_path), "test")
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}))
    with pytest.raises(DataError, match="not a complete batch"):
        cifar10(str(tmp_path), "test")


def test_cache_spares_the_decoding(
    tmp_path: Path, cache: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path / "test.zip", pictures)
    cifar10(str(tmp_path), "test")
    assert [f.suffix for f in cache.iterdir()] == [".safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("rankfold.zoo.cifar.decode_picture", lambda *_: pytest.fail("decoded"))
        assert_holds(cifar10(str(tmp_path), "test"), pictures)
        write_zip(tmp_path / "test.zip", pictures[:5])
        with pytest.raises(pytest.fail.Exception, match="decoded"):
            cifar10(str(tmp_path), "test")
    assert_holds(cifar10(str(tmp_path), "test"), pictures[:5])


def test_same_size_but_newer_file_is_decoded_again(tmp_path: Path, pictures: list[Picture]) -> None:
    write_folders(tmp_path / "test", pictures[:1])
    file = next((tmp_path / "test").rglob("*.png"))
    stat = file.stat()
    cifar10(str(tmp_path), "test")
    file.write_bytes(png(255 - pictures[0][2])[: stat.st_size].ljust(stat.st_size, b"\0"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = [(*pictures[0][:2], 255 - pictures[0][2])]
    assert_holds(cifar10(str(tmp_path), "test"), changed)


def test_broken_cache_is_written_again(tmp_path: Path, cache: Path, pictures: list[Picture]) -> None:
    write_zip(tmp_path / "test.zip", pictures)
    cifar10(str(tmp_path), "test")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.warns(RankfoldWarning, match="is damaged and is rewritten"):
        data = cifar10(str(tmp_path), "test")
    assert_holds(data, pictures)
    assert file.read_bytes() == whole
    assert [f.name for f in cache.iterdir()] == [file.name]


def test_cache_that_cannot_be_written(tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "test.zip", pictures)
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.warns(RankfoldWarning, match="decoded samples are not cached"):
        data = cifar10(str(tmp_path), "test")
    assert_holds(data, pictures)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rankfold"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' does not exist"):
        cifar10(str(tmp_path / "nowhere"), "test")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        cifar10(str(tmp_path / "file"), "test")
    with pytest.raises(DataError, match=r"no test images .*expected test\*.zip"):
        cifar10(str(tmp_path), "test")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"has no files <class>/<name>\.png"):
        cifar10(str(tmp_path), "test")


def test_wrong_pictures(tmp_path: Path, cache: Path, pictures: list[Picture]) -> None:
    write_zip(tmp_path / "test.zip", [*pictures, ("zebra", "a.png", pictures[0][2])])
    with pytest.raises(DataError, match="class 'zebra' that is not one of CIFAR-10's"):
        cifar10(str(tmp_path), "test")
    write_zip(tmp_path / "test.zip", [("cat", "a.png", np.zeros((8, 9, 3), np.uint8))])
    with pytest.raises(DataError, match=r"cat/a.png .* has 8x9 pixels"):
        cifar10(str(tmp_path), "test")
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("cat/a.png", png(pictures[0][2])[:100])
    with pytest.raises(DataError, match=r"cat/a.png .* cannot be read as a picture"):
        cifar10(str(tmp_path), "test")
    write_zip(tmp_path / "test.zip", pictures)
    (tmp_path / "test.zip").write_bytes((tmp_path / "test.zip").read_bytes()[:-30])
    with pytest.raises(DataError, match="not a complete zip file"):
        cifar10(str(tmp_path), "test")
    assert not cache.exists()


def test_without_pillow(tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "test.zip", pictures)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pillow.*rankfold\[vision\]"):
        cifar10(str(tmp_path), "test")
