"""MNIST, Fashion-MNIST, CIFAR-100, GTSRB, Speech Commands and ModelNet from tiny files in their original formats."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankfold import zoo
from rankfold.errors import ConfigError, DataError, MissingExtra
from rankfold.zoo.data_sets import DATA_SETS
from rankfold.zoo.modelnet import modelnet
from rankfold.zoo.samples import SampleArray
from rankfold.zoo.speech_commands import speech_commands


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rankfold"


def read(kind: str, path: Path, split: str = "train", **options: Any) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of a split."""
    inputs, labels = zip(*zoo.data(f"{kind}:{path}", split=split, batch_size=16, **options), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_mnist(root: Path, images: np.ndarray, part: str = "train", end: str = ".gz") -> None:
    write_idx(root / f"{part}-images-idx3-ubyte{end}", images)
    write_idx(root / f"{part}-labels-idx1-ubyte{end}", np.arange(len(images), dtype=np.uint8) % 10)


def write_cifar100(root: Path) -> np.ndarray:
    root.mkdir(parents=True, exist_ok=True)
    images = random_images(5, 3, 32, 32)
    content = {b"data": images.reshape(5, -1), b"fine_labels": [99, 1, 2, 3, 4], b"coarse_labels": [0] * 5}
    for name in ("train", "test"):
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return images


def write_gtsrb(root: Path, *, torchvisions: bool) -> np.ndarray:
    """Write two pictures of classes 3 and 7; the signs are 48x48 pixels, 5 from the left and 6 from the top."""
    from PIL import Image

    base = root / "gtsrb" if torchvisions else root
    train = base / "GTSRB" / ("Training" if torchvisions else "Final_Training/Images")
    test = base / "GTSRB" / "Final_Test" / "Images"
    pictures = random_images(2, 60, 64, 3)
    head, row = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n", "{};64;60;5;6;53;54;{}\n"
    test.mkdir(parents=True)
    for label, picture in zip((3, 7), pictures, strict=True):
        folder = train / f"{label:05}"
        folder.mkdir(parents=True)
        Image.fromarray(picture).save(folder / "00000_00000.ppm")
        (folder / f"GT-{label:05}.csv").write_text(head + row.format("00000_00000.ppm", label))
        Image.fromarray(picture).save(test / f"{label:05}.ppm")
    (base / "GT-final_test.csv").write_text(head + row.format("00003.ppm", 3) + row.format("00007.ppm", 7))
    return pictures[:, 6:54, 5:53].transpose(0, 3, 1, 2)


def write_speech(root: Path, wave: np.ndarray, rate: int = 16_000) -> None:
    """Write four recordings of each of 35 words: number 0 for testing, 1 for validation, 2 and 3 for training."""
    soundfile = pytest.importorskip("soundfile")
    for word in range(35):
        (root / f"word{word:02}").mkdir(parents=True)
        for number in range(4):
            soundfile.write(root / f"word{word:02}" / f"a_nohash_{number}.wav", wave, rate, subtype="PCM_16")
    (root / "_background_noise_").mkdir()
    soundfile.write(root / "_background_noise_" / "noise.wav", wave, rate)
    for name, number in (("testing", 0), ("validation", 1)):
        lines = "".join(f"word{word:02}/a_nohash_{number}.wav\n" for word in range(35))
        (root / f"{name}_list.txt").write_text(lines)


def box(x: float, y: float, z: float) -> str:
    """Return an OFF file with six quadrilaterals."""
    corners = [f"{a * x} {b * y} {c * z}\n" for c in (0, 1) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
    faces = ["4 0 1 2 3\n", "4 4 5 6 7\n", "4 0 1 5 4\n", "4 1 2 6 5\n", "4 2 3 7 6\n", "4 3 0 4 7\n"]
    return "".join(["OFF\n", "8 6 12\n", *corners, *faces])


def write_modelnet(root: Path, classes: int = 10) -> None:
    """Write a box of 4 x 2 x 1 in class 0 and thin sticks, which are quick, in the others."""
    pytest.importorskip("trimesh")
    for number in range(classes):
        for split in ("train", "test"):
            folder = root / f"class{number:02}" / split
            folder.mkdir(parents=True)
            (folder / "a.off").write_text(box(4, 0.1, 0.1) if number else box(4, 2, 1))


@pytest.mark.parametrize(("kind", "inner"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
@pytest.mark.parametrize("end", [".gz", ""])
@pytest.mark.parametrize("torchvisions", [False, True])
def test_idx_files(tmp_path: Path, kind: str, inner: str, end: str, torchvisions: bool) -> None:
    train, test = random_images(20, 28, 28), random_images(5, 28, 28, seed=1)
    root = tmp_path / inner / "raw" if torchvisions else tmp_path
    write_mnist(root, train, end=end)
    write_mnist(root, test, "t10k", end)
    x, y = read(kind, tmp_path)
    assert torch.equal(x, torch.from_numpy(train)[:, None] / 255)
    assert y.tolist() == [*range(10), *range(10)]
    assert torch.equal(read(kind, tmp_path, "test")[0], torch.from_numpy(test)[:, None] / 255)
    info = zoo.entry(f"lenet5_{kind}")
    normalized = read(kind, tmp_path, normalize=info)[0]
    torch.testing.assert_close(normalized, (x - info.mean[0]) / info.std[0])


def test_broken_idx_files(tmp_path: Path) -> None:
    write_mnist(tmp_path, random_images(4, 28, 28))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    plain = gzip.decompress(whole)
    for content in (b"", whole[:20], whole[:-20], *map(gzip.compress, (plain[:-1], plain[1:], plain[:3], plain[:9]))):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images.* is not a complete idx file"):
            read("mnist", tmp_path)
    write_idx(file, random_images(3, 28, 28))
    with pytest.raises(DataError, match="3 images and 4 labels"):
        read("mnist", tmp_path)
    write_idx(file, random_images(4, 27, 28))
    with pytest.raises(DataError, match=r"shape \(1, 27, 28\), MNIST has \(1, 28, 28\)"):
        read("mnist", tmp_path)
    file.write_bytes(whole)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([0, 1, 2, 10], np.uint8))
    with pytest.raises(DataError, match="the labels 0 to 10, MNIST has 10 classes"):
        read("mnist", tmp_path)
    write_mnist(tmp_path, random_images(0, 28, 28))
    with pytest.raises(DataError, match="the train split in .* is empty. Download"):
        read("mnist", tmp_path)


@pytest.mark.parametrize("inner", ["", "cifar-100-python"])
def test_cifar100(tmp_path: Path, inner: str) -> None:
    images = write_cifar100(tmp_path / inner)
    for split in ("train", "test"):
        x, y = read("cifar100", tmp_path, split)
        assert torch.equal(x, torch.from_numpy(images) / 255)
        assert y.tolist() == [99, 1, 2, 3, 4], "the fine labels"
    (tmp_path / inner / "train").write_bytes(pickle.dumps({b"data": images, b"labels": [0] * 5}))
    with pytest.raises(DataError, match="is not a complete batch of CIFAR: b'fine_labels'"):
        read("cifar100", tmp_path)


@pytest.mark.parametrize("torchvisions", [False, True])
def test_gtsrb(tmp_path: Path, torchvisions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    signs = write_gtsrb(tmp_path, torchvisions=torchvisions)
    for split in ("train", "test"):
        x, y = read("gtsrb", tmp_path, split)
        assert torch.equal(x, torch.from_numpy(signs) / 255)
        assert y.tolist() == [3, 7]
    monkeypatch.setattr("rankfold.zoo.gtsrb.decode_picture", lambda *_, **__: pytest.fail("decoded"))
    assert torch.equal(read("gtsrb", tmp_path)[0], torch.from_numpy(signs) / 255)


def test_gtsrb_scales_signs(tmp_path: Path) -> None:
    from PIL import Image

    write_gtsrb(tmp_path, torchvisions=False)
    half = np.zeros((60, 64, 3), np.uint8)
    half[:, 15:, 0] = 255  # red from the middle of the sign
    Image.fromarray(half).save(tmp_path / "GTSRB/Final_Test/Images/00003.ppm")
    table = tmp_path / "GT-final_test.csv"
    table.write_text(table.read_text().replace("5;6;53;54;3", "5;6;25;26;3"))
    x, _ = read("gtsrb", tmp_path, "test")
    assert x[0, 0, :, :20].eq(0).all()
    assert x[0, 0, :, 28:].eq(1).all()
    assert x[0, 1:].eq(0).all()


def test_broken_gtsrb(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    write_gtsrb(tmp_path, torchvisions=False)
    table, file = tmp_path / "GT-final_test.csv", tmp_path / "GTSRB/Final_Test/Images/00003.ppm"
    text = table.read_text()
    for wrong in (text.replace(";", ","), text.replace("64;60;5", "64;60;x"), text.replace("Roi.X1", "X"), text[:-12]):
        table.write_text(wrong)
        with pytest.raises(DataError, match=r"GT-final_test.csv' is not a table of GTSRB"):
            read("gtsrb", tmp_path, "test")
    table.write_text(text.splitlines()[0])
    with pytest.raises(DataError, match="the test split in .* is empty. Unpack"):
        read("gtsrb", tmp_path, "test")
    table.write_text(text.replace("53;54;3", "53;99;3"))
    with pytest.raises(DataError, match=r"00003.ppm' cannot be read as a picture"):
        read("gtsrb", tmp_path, "test")
    table.write_text(text.replace(";3\n", ";43\n"))
    with pytest.raises(DataError, match="the labels 7 to 43, GTSRB has 43 classes"):
        read("gtsrb", tmp_path, "test")
    table.write_text(text)
    file.unlink()
    with pytest.raises(DataError, match=r"00003.ppm' cannot be read: No such file.*incomplete"):
        read("gtsrb", tmp_path, "test")


@pytest.mark.parametrize("inner", ["", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def test_speech_commands(tmp_path: Path, inner: str) -> None:
    wave = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000) / 2
    write_speech(tmp_path / inner, wave)
    x, y = read("speechcommands", tmp_path)
    assert x.shape == (70, 1, 8000)
    assert y.tolist() == [word for word in range(35) for _ in range(2)]
    expected = torch.from_numpy(np.sin(2 * np.pi * 200 * np.arange(8000) / 8000) / 2).float()
    torch.testing.assert_close(x[0, 0, 100:-100], expected[100:-100], rtol=0, atol=2e-3)
    assert read("speechcommands", tmp_path, "test")[1].tolist() == list(range(35))
    assert read("speechcommands", tmp_path, normalize=zoo.entry("m5_speechcommands"))[0].equal(x)


def test_speech_is_padded_cut_and_averaged(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    write_speech(tmp_path, np.full(10, 0.25), rate=8000)
    first, second, third = (tmp_path / "word00" / f"a_nohash_{number}.wav" for number in (2, 3, 4))
    soundfile.write(first, np.full(9000, 0.25), 8000)
    soundfile.write(second, np.array([[0.5, 0.0]] * 8000), 8000)
    soundfile.write(third, np.array([-1.0, 1.0]), 8000)
    x, _ = read("speechcommands", tmp_path)
    assert x[0].eq(0.25).all()
    assert x[1].eq(0.25).all()
    assert x[2, 0, :3].tolist() == [-1.0, 32767 / 32768, 0.0]
    assert x[3, 0, :10].eq(0.25).all()
    assert x[3, 0, 10:].eq(0).all()


def test_broken_speech_commands(tmp_path: Path) -> None:
    write_speech(tmp_path, np.zeros(8))
    (tmp_path / "word00" / "a_nohash_2.wav").write_bytes(b"RIFF....WAVE")
    with pytest.raises(DataError, match=r"a_nohash_2.wav' cannot be read as audio"):
        read("speechcommands", tmp_path)
    (tmp_path / "word07" / "a_nohash_1.wav").unlink()
    with pytest.raises(DataError, match="1 files in the lists .* are missing, such as 'word07/a_nohash_1.wav'"):
        read("speechcommands", tmp_path)
    (tmp_path / "word35").mkdir()
    (tmp_path / "word35" / "a.wav").touch()
    with pytest.raises(DataError, match="has recordings of 36 words, Speech Commands 0.02 has 35"):
        read("speechcommands", tmp_path)
    (tmp_path / "word35" / "a.wav").unlink()
    (tmp_path / "validation_list.txt").unlink()
    with pytest.raises(DataError, match="validation_list.txt .* cannot be read"):
        read("speechcommands", tmp_path)


@pytest.mark.parametrize(("kind", "inner"), [("modelnet10", ""), ("modelnet10", "ModelNet10"), ("modelnet40", "")])
def test_modelnet(tmp_path: Path, kind: str, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = DATA_SETS[kind].classes
    write_modelnet(tmp_path / inner, classes)
    x, y = read(kind, tmp_path)
    assert y.tolist() == list(range(classes))
    expected = torch.zeros(32, 32, 32)
    expected[1:31, 8:24, 12:20] = 1  # 30 x 15 x 7.5, centered and solid: the ends of the short sides share voxels
    assert torch.equal(x[0, 0], expected)
    assert x[1:].sum((1, 2, 3, 4)).eq(30 * 2 * 2).all()
    normalized = read(kind, tmp_path, normalize=zoo.entry(f"voxnet_{kind}"))[0]
    assert torch.equal(normalized, 2 * x - 1)
    monkeypatch.setattr("rankfold.zoo.modelnet._voxels", lambda *_: pytest.fail("decoded"))
    assert torch.equal(read(kind, tmp_path)[0], x)


def test_meshes_of_modelnet(tmp_path: Path) -> None:
    write_modelnet(tmp_path)

    def voxels(text: str) -> Tensor:
        (tmp_path / "class00/train/a.off").write_text(text)
        return modelnet("modelnet10", str(tmp_path), "train").inputs[0, 0]

    whole, rows = voxels(box(4, 2, 1)), box(4, 2, 1).splitlines()
    assert torch.equal(voxels("OFF" + box(4, 2, 1)[4:]), whole), "some headers lack the line break"
    moved = [" ".join(str(7 + 0.01 * float(v)) for v in row.split()) for row in rows[2:10]]
    assert torch.equal(voxels("\n".join([*rows[:2], *moved, *rows[10:]])), whole), "position and scale are arbitrary"
    far = "\n".join(["OFF", "9 6 12", *rows[2:10], "99 99 99", *rows[10:]])
    assert torch.equal(voxels(far), whole), "no face has the last vertex"
    assert torch.equal(voxels(box(1, 2, 4)), whole.permute(2, 1, 0))
    assert not torch.equal(voxels(box(4, 1, 2)), whole)


def test_broken_modelnet(tmp_path: Path) -> None:
    write_modelnet(tmp_path)
    file, text = tmp_path / "class00/train/a.off", box(4, 2, 1)
    point = "OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n"
    index, number = text.replace("4 0 1 2 3", "4 0 1 2 9"), text.replace("4 2", "nan 2")
    for content in ("", "solid a", text[:60], index, number, point):
        file.write_text(content)
        with pytest.raises(DataError, match=r"a.off' cannot be read as a mesh"):
            read("modelnet10", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="train meshes of 9 classes, ModelNet10 has 10"):
        read("modelnet10", tmp_path)


@pytest.mark.parametrize("kind", sorted(set(DATA_SETS) - {"mnist5k", "cifar10"}))
@pytest.mark.parametrize("split", ["train", "test", "calibration"])
def test_absent_data_says_what_to_download(tmp_path: Path, kind: str, split: str) -> None:
    info = DATA_SETS[kind]
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            zoo.data(f"{kind}:{path}", split=split)
        message = str(error.value)
        assert f"there is no {'test' if split == 'test' else 'train'} split of {info.title} in {str(path)!r}" in message
        assert info.download in message
        assert "expected" in message


@pytest.mark.parametrize("kind", sorted(DATA_SETS))
def test_downloads_are_sentences_about_the_data_set(kind: str) -> None:
    info = DATA_SETS[kind]
    assert info.download.endswith("this folder.")
    assert info.title.split("-")[-1].removeprefix("Fashion").split()[0] in info.download or kind == "gtsrb"
    assert len(info.mean) == len(info.std) == info.shape[0]


@pytest.mark.parametrize("kind", ["speechcommands", "modelnet10", "modelnet40"])
def test_augmentation_is_for_images(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"augment=True is for images only, not for '{kind}:"):
        zoo.data(f"{kind}:{tmp_path}", split="train", augment=True)
    write_mnist(tmp_path, random_images(20, 28, 28))
    assert not read("mnist", tmp_path, augment=True)[0].equal(read("mnist", tmp_path)[0])


@pytest.mark.parametrize(
    ("package", "write", "call"),
    [
        ("soundfile", lambda root: write_speech(root, np.zeros(4)), lambda path: speech_commands(path, "train")),
        ("trimesh", write_modelnet, lambda path: modelnet("modelnet10", path, "train")),
    ],
)
def test_missing_package(
    tmp_path: Path,
    package: str,
    write: Callable[[Path], None],
    call: Callable[[str], SampleArray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*rankfold\[datasets\]"):
        call(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("mnist", lambda root: write_mnist(root, random_images(8, 28, 28))),
        ("gtsrb", lambda root: write_gtsrb(root, torchvisions=False)),
        ("speechcommands", lambda root: write_speech(root, np.zeros(4))),
        ("modelnet10", write_modelnet),
    ],
)
def test_networks_take_their_data(tmp_path: Path, kind: str, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    name = next(name for name in zoo.names() if zoo.entry(name).data == kind)
    x, _ = read(kind, tmp_path, normalize=zoo.entry(name), limit=2)
    assert zoo.create(name, seed=0)(x).shape == (2, DATA_SETS[kind].classes)
