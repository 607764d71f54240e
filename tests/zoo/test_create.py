from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rankfold import zoo
from rankfold.errors import (
    ConfigError,
    MissingExtra,
    ModelError,
    RankfoldError,
    UnknownNameError,
)

FACTORIES = """
from dataclasses import dataclass
import torch
from torch import nn
from neighbor import WIDTH

@dataclass
class Net(nn.Module):
    width: "int" = WIDTH
    def __post_init__(self):
        super().__init__()
        self.layer = nn.Linear(3, self.width)
    __hash__ = nn.Module.__hash__

def make(num_classes=5):
    return nn.Linear(3, num_classes)

def fixed():
    return nn.Linear(3, 2)

def needs(width):
    return nn.Linear(3, width)

def text():
    return "not a network"

def fails():
    raise ZeroDivisionError("the user's own")

instance = nn.Linear(3, 2)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbor.py").write_text("WIDTH = 7\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", ["lenet5_mnist5k", "resnet20_cifar10", "torchvision/mobilenet_v2"])
def test_seed_is_reproducible_and_leaves_the_generators_alone(name: str) -> None:
    if name.startswith("torchvision"):
        pytest.importorskip("torchvision")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (zoo.create(name, seed=seed) for seed in (3, 3, 4))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert same(first, second)
    assert not same(first, other)
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()


def test_without_seed_the_global_generator_decides() -> None:
    torch.manual_seed(5)
    first = zoo.create("lenet5_mnist5k")
    second = zoo.create("lenet5_mnist5k")
    torch.manual_seed(5)
    assert same(first, zoo.create("lenet5_mnist5k"))
    assert not same(first, second)


def test_weights_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    net = zoo.create("lenet5_mnist5k", weights="bundled")
    assert torch.equal(before, torch.get_rng_state())
    assert not same(net, zoo.create("lenet5_mnist5k", seed=0))


def test_meta_device() -> None:
    with torch.device("meta"):
        net = zoo.create("vgg16_bn_cifar10", seed=0)
    assert {p.device.type for p in net.parameters()} == {"meta"}


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a download was tried: {arguments} {options}")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse, raising=False)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    "name",
    [
        "torchvision/resnet18",
        "torchvision/googlenet",
        "torchvision/mobilenet_v2",
        "torchvision/lraspp_mobilenet_v3_large",
        "torchvision/ssdlite320_mobilenet_v3_large",
        "torchvision/raft_small",
        "timm/convnext_atto",
        "timm/test_vit.r160_in1k",
    ],
)
def test_networks_of_other_packages_run_on_their_example(name: str) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    net = zoo.create(name, seed=0)
    x = zoo.example_input(name)
    assert not net.training
    with torch.inference_mode():
        y = net(*x) if isinstance(x, tuple) else net(x)
    assert y is not None


def test_example_inputs() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    shapes = {
        "lenet5_mnist5k": (1, 1, 28, 28),
        "resnet20_cifar10": (1, 3, 32, 32),
        "torchvision/resnet18": (1, 3, 224, 224),
        "torchvision/inception_v3": (1, 3, 299, 299),
        "torchvision/mvit_v2_s": (1, 3, 16, 224, 224),
        "timm/inception_v3": (1, 3, 299, 299),
        "timm/test_vit": (1, 3, 160, 160),
    }
    for name, shape in shapes.items():
        x = zoo.example_input(name)
        assert isinstance(x, torch.Tensor)
        assert x.shape == shape
        again = zoo.example_input(name)
        assert isinstance(again, torch.Tensor)
        assert torch.equal(x, again)
    detection = zoo.example_input("torchvision/fasterrcnn_resnet50_fpn")
    assert isinstance(detection, list)
    assert [image.shape for image in detection] == [(3, 320, 320)]
    flow = zoo.example_input("torchvision/raft_large")
    assert isinstance(flow, tuple)
    assert len(flow) == 2
    assert zoo.example_input("some.module:factory") is None
    with pytest.raises(UnknownNameError):
        zoo.example_input("resnet21_cifar10")


def test_names_and_entries_of_other_packages() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert "torchvision/resnet18" in zoo.names("torchvision")
    assert "timm/resnet18" in zoo.names("timm")
    assert not set(zoo.names()) & set(zoo.names("timm"))
    assert zoo.entry("timm/test_vit").mean == (0.5, 0.5, 0.5)
    assert zoo.entry("torchvision/resnet18").mean == (0.485, 0.456, 0.406)
    assert zoo.entry("torchvision/fasterrcnn_resnet50_fpn").mean is None
    with pytest.raises(UnknownNameError, match="'timm'"):
        zoo.names("tim")


def test_number_of_classes_elsewhere() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert zoo.create("torchvision/mobilenet_v2", num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (
        1,
        7,
    )
    assert zoo.create("timm/test_resnet", num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ConfigError, match="raft_small has no num_classes"):
        zoo.create("torchvision/raft_small", num_classes=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20_cifar", "Did you mean 'resnet20_cifar10'"),
        ("torchvision/resnet19", "Did you mean 'resnet18'"),
        ("torchvision/", "unknown network '' of torchvision"),
        ("timm/convnexttiny", "Did you mean 'convnext_tiny'"),
        ("timm/hf-hub:timm/resnet18", "unknown network .* of timm"),
        ("timm/resnet18.nonsense", "resnet18.nonsense"),
        ("pytorch/resnet18", "torchvision/NAME"),
        ("", "unknown network ''"),
        ("a b:c", "unknown network"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError, match=message):
        zoo.create(name)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*rankfold\[vision\]"):
        zoo.create(f"{package}/resnet18")


def test_file_factory(file: Path) -> None:
    import sys

    before = list(sys.path)
    net = zoo.create(f"{file}:Net", seed=1)
    assert isinstance(net.layer, nn.Linear)
    assert net.layer.out_features == 7
    assert not net.training
    assert type(net) is type(zoo.create(f"{file}:Net"))
    assert same(net, zoo.create(f"{file}:Net", seed=1))
    assert sys.path == before
    made = zoo.create(f"{file}:make", num_classes=9)
    assert isinstance(made, nn.Linear)
    assert made.out_features == 9
    assert zoo.entry(f"{file}:make").input_shape is None


def test_edited_file_is_read_again(file: Path) -> None:
    zoo.create(f"{file}:fixed")
    file.write_text("from torch import nn\ndef fixed():\n    return nn.Linear(1, 1)\n")
    net = zoo.create(f"{file}:fixed")
    assert isinstance(net, nn.Linear)
    assert net.in_features == 1


def test_module_factory_from_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent / "rankfold_test_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text("from torch import nn\ndef make():\n    return nn.ReLU()\n")
    monkeypatch.chdir(file.parent)
    assert isinstance(zoo.create("rankfold_test_package.nets:make"), nn.ReLU)
    assert isinstance(zoo.create("torch.nn:Identity"), nn.Identity)
    monkeypatch.setattr("__main__.make_here", lambda: nn.Tanh(), raising=False)
    assert isinstance(zoo.create("__main__:make_here"), nn.Tanh)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("mak", UnknownNameError, "Did you mean 'make'"),
        ("instance", UnknownNameError, "function or class"),
        ("text", ModelError, "must return a torch.nn.Module. Got str"),
        ("needs", ConfigError, "missing a required argument: 'width'"),
        ("fails", ZeroDivisionError, "the user's own"),
    ],
)
def test_bad_factories(file: Path, factory: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zoo.create(f"{file}:{factory}")


def test_factory_without_num_classes(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"fixed\(num_classes=\.\.\.\)"):
        zoo.create(f"{file}:fixed", num_classes=3)


def test_modules_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match=r"no file .*missing\.py"):
        zoo.create(f"{tmp_path}/missing.py:make")
    with pytest.raises(RankfoldError, match="no_such_module_here"):
        zoo.create("no_such_module_here:make")
    (tmp_path / "broken.py").write_text("def make(:\n")
    with pytest.raises(RankfoldError, match="SyntaxError"):
        zoo.create(f"{tmp_path}/broken.py:make")


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="num_classes must be at least 1"):
        zoo.create("lenet5_mnist5k", num_classes=0)
    with pytest.raises(ConfigError, match="has no bundled weights"):
        zoo.create("resnet20_cifar10", weights="bundled")
