from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rankfold import zoo
from rankfold.errors import ConfigError, DataError, MissingExtra, RankfoldError, UnknownNameError
from rankfold.zoo.samples import Preparation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def arrays(n: int = 40, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (n, channels, 16, 12), dtype=np.uint8), np.arange(n)


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """Labels number the images, so that each can be identified; training images start at 100."""
    x, y = arrays()
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y + 100, x_test=x[:10], y_test=y[:10])
    return f"npz:{tmp_path / 'set.npz'}"


def load(spec: str, **options: Any) -> DataLoader[Any]:
    loader = zoo.data(spec, **options)
    assert isinstance(loader, DataLoader)
    return loader


def labels(loader: Any) -> list[int]:
    return list(itertools.chain.from_iterable(y.tolist() for _, y in loader))


def images(loader: Any) -> Tensor:
    return torch.cat([x for x, _ in loader])


def test_batches(npz: str) -> None:
    batches = list(load(npz, split="test", batch_size=4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert {x.dtype for x, _ in batches} == {torch.float32}
    assert {y.dtype for _, y in batches} == {torch.int64}
    x, y = arrays(10)
    assert torch.equal(torch.cat([b for b, _ in batches]), torch.from_numpy(x).float() / 255)
    assert torch.cat([b for _, b in batches]).tolist() == y.tolist()
    assert len(load(npz, split="train", batch_size=4)) == 10


def test_normalization(npz: str) -> None:
    loader = load(npz, split="test", normalize=(MEAN, STD))
    x = arrays(10)[0].astype(np.float64).transpose(0, 2, 3, 1) / 255
    expected = torch.from_numpy(((x - MEAN) / STD).transpose(0, 3, 1, 2)).float()
    torch.testing.assert_close(images(loader), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(images(load(npz, split="test")), expected, atol=1e-2)
    entry = zoo.entry("resnet20_cifar10")
    assert entry.mean is not None
    assert entry.std is not None
    by_entry = load(npz, split="test", normalize=entry)
    by_hand = load(npz, split="test", normalize=(entry.mean, entry.std))
    assert torch.equal(images(by_entry), images(by_hand))


def test_dataset_can_be_rewrapped(npz: str) -> None:
    loader = load(npz, split="test", normalize=(MEAN, STD))
    image, label = loader.dataset[3]
    assert torch.equal(image, images(loader)[3])
    assert int(label) == 3
    again = DataLoader(torch.utils.data.Subset(loader.dataset, [3, 1]), batch_size=2)
    x, y = next(iter(again))
    assert y.tolist() == [3, 1]
    assert torch.equal(x, images(loader)[[3, 1]])


def test_calibration_is_a_seeded_part_of_train(npz: str) -> None:
    first = labels(load(npz, split="calibration", limit=16))
    assert len(first) == len(set(first)) == 16
    assert set(first) <= set(range(100, 140))
    assert first != sorted(first)
    assert first == labels(load(npz, split="calibration", limit=16))
    assert first != labels(load(npz, split="calibration", limit=16, seed=1))
    assert first == labels(load(npz, split="train", limit=16))
    assert sorted(labels(load(npz, split="calibration"))) == list(range(100, 140))


def test_calibration_defaults_to_1024(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1100, 2, 2), np.uint8), y=np.arange(1100))
    found = labels(load(f"npz:{tmp_path / 'a.npz'}", split="calibration"))
    assert len(set(found)) == 1024


def test_held_out_images_are_those_that_training_lacks(npz: str) -> None:
    whole = set(labels(load(npz, split="train")))
    for hold_out, count in ((0.25, 10), (7, 7)):
        held, rest = (labels(load(npz, split=split, hold_out=hold_out)) for split in ("held_out", "train"))
        assert (len(held), len(rest)) == (count, 40 - count)
        assert set(held) | set(rest) == whole
    calibration = load(npz, split="calibration", limit=20)
    assert not set(labels(calibration)) & set(labels(load(npz, split="held_out", hold_out=20)))
    first, again, other = (labels(load(npz, split="held_out", hold_out=7, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert set(labels(load(npz, split="train", hold_out=7, limit=20))) < whole - set(first)


def test_limit_is_a_random_subset(npz: str) -> None:
    found = labels(load(npz, split="test", limit=4))
    assert len(set(found)) == 4
    assert found != [0, 1, 2, 3]
    assert sorted(labels(load(npz, split="test", limit=99))) == list(range(10))


def test_shuffle_is_seeded_and_changes_each_pass(npz: str) -> None:
    loader = load(npz, split="train", shuffle=True)
    first, second = labels(loader), labels(loader)
    assert sorted(first) == sorted(second) == list(range(100, 140))
    assert first != second
    again = load(npz, split="train", shuffle=True)
    assert [labels(again), labels(again)] == [first, second]
    assert labels(load(npz, split="train", shuffle=True, seed=1)) != first
    assert labels(load(npz, split="train")) == list(range(100, 140))


def test_reseeding_the_loaders_generator_repeats_a_pass(npz: str) -> None:
    loader = load(npz, split="train", shuffle=True, augment=True)
    labels(loader)
    loader.generator.manual_seed(9)
    first, order = images(loader), labels(loader)
    loader.generator.manual_seed(9)
    assert torch.equal(images(loader), first)
    assert labels(loader) == order
    assert not torch.equal(images(loader), first)


def test_global_generator_is_untouched(npz: str) -> None:
    before = torch.get_rng_state()
    images(load(npz, split="train", shuffle=True, augment=True, limit=20))
    assert torch.equal(before, torch.get_rng_state())


def prepared(x: Tensor, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return Preparation(None, None, True, draw)(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_a_crop_and_for_color_a_flip(channels: int) -> None:
    x = torch.from_numpy(arrays(64, channels)[0])
    out = prepared(x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2)).float() / 255  # an eighth of 16
    seen = set()
    for i in range(len(x)):
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(out[i], _crop(padded[i], top, left, flip))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == ({False, True} if channels == 3 else {False})


def _crop(image: Tensor, top: int, left: int, flip: bool) -> Tensor:
    part = image[:, top : top + 16, left : left + 12]
    return part.flip(2) if flip else part


def test_augmentation_is_seeded(npz: str) -> None:
    first = load(npz, split="train", augment=True)
    again = load(npz, split="train", augment=True)
    one, two = images(first), images(first)
    assert torch.equal(one, images(again))
    assert not torch.equal(one, two)
    assert not torch.equal(one, images(load(npz, split="train", augment=True, seed=1)))
    assert not torch.equal(one, images(load(npz, split="train")))


@pytest.mark.slow
def test_worker_processes(npz: str) -> None:
    plain = load(npz, split="train", batch_size=8)
    busy = load(npz, split="train", batch_size=8, workers=2)
    assert torch.equal(images(plain), images(busy))
    augmented = load(npz, split="train", batch_size=20, workers=2, augment=True)
    again = load(npz, split="train", batch_size=20, workers=2, augment=True)
    first, second = images(augmented), images(augmented)
    assert torch.equal(first, images(again))
    assert not torch.equal(first, second)
    # If both workers drew the same numbers, picture 0 of each batch would be cropped alike.
    same = np.zeros((40, 3, 16, 12), np.uint8) + np.arange(192, dtype=np.uint8).reshape(16, 12)
    path = Path(npz.removeprefix("npz:")).with_name("same.npz")
    np.savez(path, x=same, y=np.arange(40))
    out = images(load(f"npz:{path}", split="train", batch_size=20, workers=2, augment=True))
    assert not torch.equal(out[:20], out[20:])


def test_wrong_number_of_channels(npz: str) -> None:
    with pytest.raises(DataError, match="inputs have 3 channels, the normalization has 1"):
        images(load(npz, split="test", normalize=zoo.entry("lenet5_mnist5k")))


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("cifar1000:x", {}, UnknownNameError, "unknown data set 'cifar1000'. Did you mean 'cifar100:P"),
        ("mnist5", {}, UnknownNameError, "Did you mean 'mnist5k'"),
        ("mnist", {}, DataError, "needs a path. Pass it as 'mnist:PATH'"),
        ("", {}, UnknownNameError, "unknown data set ''"),
        ("mnist5k", {"split": "tests"}, UnknownNameError, "unknown split 'tests'. Did you mean"),
        ("mnist5k:here", {}, DataError, "takes no path. Got 'here'"),
        ("cifar10", {}, DataError, "needs a path. Pass it as 'cifar10:PATH'"),
        ("npz:", {}, DataError, "needs a path"),
        ("imagefolder", {}, DataError, "needs a path"),
        ("NPZ", {"limit": 0}, ConfigError, "limit must be at least 1. Got 0"),
        ("NPZ", {"batch_size": 0}, ConfigError, "batch_size must be at least 1. Got 0"),
        ("NPZ", {"workers": -1}, ConfigError, "workers must be at least 0. Got -1"),
        ("NPZ", {"augment": True}, ConfigError, "for the train split only. Got split='test'"),
        ("NPZ", {"hold_out": 3}, ConfigError, "is for training images. Leave it out for 'test'"),
        ("NPZ", {"split": "held_out"}, ConfigError, "leaves 0 of 40 training images out"),
        ("NPZ", {"split": "train", "hold_out": 40}, ConfigError, "hold_out=40 leaves 40 of 40 training images out"),
        ("NPZ", {"image_size": (8, 8)}, ConfigError, "image_size is for 'imagefolder:PATH' only"),
        ("NPZ", {"normalize": ((0.5,), (0.5, 0.5))}, ConfigError, "normalize must be a mean"),
        ("NPZ", {"normalize": (MEAN, (0.1, 0.0, 0.1))}, ConfigError, "a positive std"),
    ],
)
def test_bad_requests(npz: str, spec: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zoo.data(npz if spec == "NPZ" else spec, **{"split": "test", **options})


FACTORY = """
import torch

def batches(split, batch_size):
    assert split in ("train", "calibration", "test")
    return [(torch.full((batch_size, 2), float(i)), torch.arange(batch_size)) for i in range(3)]

def dicts(split, batch_size):
    return [{"x": torch.zeros(batch_size, 2), "label": torch.zeros(batch_size)}] * 3

def lists(split, batch_size):
    return [[torch.zeros(batch_size, 2), torch.zeros(batch_size)]] * 3

def detection(split, batch_size):
    return [([torch.zeros(3, 8, 8)] * batch_size, [{"boxes": torch.zeros(0, 4)}] * batch_size)] * 3

def empty(split, batch_size):
    return []

def nothing(split, batch_size):
    return None

def old(batch_size):
    return []
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mydata.py").write_text(FACTORY)
    return str(tmp_path / "mydata.py")


def test_factory(factory: str) -> None:
    loader = list(zoo.data(f"{factory}:batches", split="test", batch_size=5))
    assert [x[0, 0].item() for x, _ in loader] == [0, 1, 2]
    assert {len(y) for _, y in loader} == {5}


@pytest.mark.parametrize("name", ["batches", "dicts", "lists", "detection"])
def test_factory_with_limit(factory: str, name: str) -> None:
    def sizes(limit: int | None) -> list[int]:
        loader = zoo.data(f"{factory}:{name}", split="test", batch_size=4, limit=limit)
        once, twice = (
            [[len(part) for part in (b.values() if isinstance(b, dict) else b)] for b in loader] for _ in range(2)
        )
        assert once == twice
        assert all(inputs == target for inputs, target in once)
        return [inputs for inputs, _ in once]

    assert sizes(None) == [4, 4, 4]
    assert sizes(6) == [4, 2]
    assert sizes(4) == [4]
    assert sizes(99) == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("nothing", {}, DataError, "must return an iterable of batches. Got NoneType"),
        ("old", {}, ConfigError, "unexpected keyword argument 'split'"),
        ("bathces", {}, UnknownNameError, "Did you mean 'batches'"),
        ("batches", {"shuffle": True}, ConfigError, "is a factory, which prepares its own data"),
    ],
)
def test_bad_factories(factory: str, name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zoo.data(f"{factory}:{name}", split="test", **options)


def test_module_factory(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(factory).parent)
    Path(factory).rename("rankfold_test_data.py")
    assert len(list(zoo.data("rankfold_test_data:batches", split="test"))) == 3
    with pytest.raises(RankfoldError, match=r"'no_such_package\.data' .* cannot be imported"):
        zoo.data("no_such_package.data:batches", split="test")


def test_missing_factory_file_and_empty_data(factory: str, tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match=r"no file .*gone\.py"):
        zoo.data(f"{tmp_path}/gone.py:make", split="test")
    with pytest.raises(DataError, match="empty"):
        list(zoo.data(f"{factory}:empty", split="test", limit=3))


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_layouts(tmp_path: Path, layout: str, dtype: type) -> None:
    x, y = arrays(6, 1 if layout == "NHW" else 3)
    stored = {"NHW": x[:, 0], "NCHW": x, "NHWC": x.transpose(0, 2, 3, 1)}[layout]
    if dtype is not np.uint8:
        stored = (stored / 255).astype(dtype)
    np.savez(tmp_path / "a.npz", x=stored, y=y.astype(np.int32)[:, None])
    loader = load(f"npz:{tmp_path / 'a.npz'}", split="test")
    torch.testing.assert_close(images(loader), torch.from_numpy(x).float() / 255)
    assert labels(loader) == y.tolist()


X, Y = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": X}, r"contains the arrays a; expected x_test and y_test, or x and y"),
        ({"x_train": X, "y_train": Y}, "expected x_test and y_test"),
        ({"x": X, "y": Y[:3]}, r"y of .* has the shape \(3,\). Save one label per image, in the shape \(4,\)"),
        ({"x": X, "y": Y.astype(float)}, "must contain integers. Got float64"),
        ({"x": X, "y": Y - 1}, "negative label -1"),
        ({"x": X.astype(np.int64), "y": Y}, "must be uint8 or float. Got int64"),
        ({"x": X.astype(float) * np.nan, "y": Y}, "NaN or infinity"),
        ({"x": X[:, :2], "y": Y}, "it is not clear which axis holds the 1 or 3 channels"),
        ({"x": X[..., :3], "y": Y}, "it is not clear which axis holds the 1 or 3 channels"),
        ({"x": X[:, 0, 0], "y": Y}, r"Save images as \(N, H, W\), \(N, C, H, W\)"),
        ({"x": X[:0], "y": Y[:0]}, "is empty"),
        ({"x": X, "y": np.array([{}, {}, {}, {}])}, "plain arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=message):
        zoo.data(f"npz:{tmp_path / 'a.npz'}", split="test")


def test_broken_npz_files(tmp_path: Path, npz: str) -> None:
    with pytest.raises(DataError, match="no file"):
        zoo.data(f"npz:{tmp_path / 'gone.npz'}", split="test")
    file = Path(npz.removeprefix("npz:"))
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"not a complete \.npz file"):
            zoo.data(npz, split="test")
    np.save(tmp_path / "single.npy", X)
    with pytest.raises(DataError, match="single array"):
        zoo.data(f"npz:{tmp_path / 'single.npy'}", split="test")


def test_array_without_pillow_or_mlxtend(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert labels(load(npz, split="test")) == list(range(10))
    with pytest.raises(MissingExtra, match="pillow"):
        zoo.data("imagefolder:anywhere", split="test")
