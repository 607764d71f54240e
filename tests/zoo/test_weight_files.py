from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankfold.errors import CorruptArtifact, ModelError, RankfoldError, RankfoldWarning
from rankfold.zoo.weight_files import load_weights, read_state_dict


def net(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def source() -> dict[str, Tensor]:
    return snapshot(net(1))


def save(content: Any, path: Path) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_round_trip(tmp_path: Path, source: dict[str, Tensor], name: str) -> None:
    model = net(2)
    assert not equal(snapshot(model), source)
    load_weights(model, save(source, tmp_path / name))
    assert equal(snapshot(model), source)


def test_legacy_torch_file(tmp_path: Path, source: dict[str, Tensor]) -> None:
    torch.save(source, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert equal(read_state_dict(tmp_path / "w.pt"), source)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested(tmp_path: Path, source: dict[str, Tensor], key: str) -> None:
    path = save({"epoch": 3, key: OrderedDict(source), "lr": 0.1}, tmp_path / "w.pt")
    model = net(2)
    load_weights(model, path)
    assert equal(snapshot(model), source)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "'module.'"),
        ("_orig_mod.", "'_orig_mod.'"),
        ("_orig_mod.module.", "'_orig_mod.' and 'module.'"),
        ("module._orig_mod.", "'_orig_mod.' and 'module.'"),
    ],
)
def test_wrapper_prefixes(tmp_path: Path, source: dict[str, Tensor], prefix: str, said: str) -> None:
    path = save({prefix + n: t for n, t in source.items()}, tmp_path / "w.safetensors")
    model = net(2)
    with pytest.warns(RankfoldWarning, match=f"prefix {said} from"):
        load_weights(model, path)
    assert equal(snapshot(model), source)


def test_compiled_block(tmp_path: Path, source: dict[str, Tensor]) -> None:
    renamed = {n.replace("0.", "0._orig_mod.", 1): t for n, t in source.items()}
    assert renamed.keys() != source.keys()
    model = net(2)
    with pytest.warns(RankfoldWarning, match="_orig_mod"):
        load_weights(model, save(renamed, tmp_path / "w.pt"))
    assert equal(snapshot(model), source)


def test_own_child_called_module_is_no_prefix(tmp_path: Path) -> None:
    first, second = (nn.ModuleDict({"module": net(seed)}) for seed in (1, 2))
    path = save(first.state_dict(), tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(second, path)
    assert equal(snapshot(second), snapshot(first))
    wrapped = save({f"module.{n}": t for n, t in first.state_dict().items()}, tmp_path / "x.pt")
    third = nn.ModuleDict({"module": net(3)})
    with pytest.warns(RankfoldWarning, match="'module.' from"):
        load_weights(third, wrapped)
    assert equal(snapshot(third), snapshot(first))


def test_batchnorm_counter_may_be_missing(tmp_path: Path, source: dict[str, Tensor]) -> None:
    del source["1.num_batches_tracked"]
    model = net(2)
    load_weights(model, save(source, tmp_path / "w.pt"))
    assert torch.equal(model.state_dict()["0.weight"], source["0.weight"])
    del source["1.running_mean"]
    with pytest.raises(ModelError, match=r"1 missing in the file: 1\.running_mean"):
        load_weights(model, save(source, tmp_path / "w.pt"))


def test_other_precision_is_converted(tmp_path: Path, source: dict[str, Tensor]) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in source.items()}
    model = net(2)
    load_weights(model, save(half, tmp_path / "w.safetensors"))
    assert model.state_dict()["0.weight"].dtype == torch.float32
    assert torch.equal(model.state_dict()["0.weight"], half["0.weight"].float())


def changed(source: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        return {n: t for n, t in source.items() if n != "0.bias"}
    if how == "extra":
        return {**source, "9.bias": torch.zeros(2)}
    return {**source, "0.weight": torch.zeros(4, 3, 5, 5)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 missing in the file: 0.bias"),
        ("extra", "1 not in the network: 9.bias"),
        ("shape", r"0.weight is \(4, 3, 5, 5\) in the file, \(4, 3, 3, 3\) in the network"),
    ],
)
def test_mismatch_changes_nothing(tmp_path: Path, source: dict[str, Tensor], how: str, message: str) -> None:
    model = net(2)
    before = snapshot(model)
    with pytest.raises(ModelError, match=message):
        load_weights(model, save(changed(source, how), tmp_path / "w.safetensors"))
    assert equal(snapshot(model), before)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    many = {f"layer{i}.weight": torch.zeros(1) for i in range(30)}
    with pytest.raises(ModelError, match=r"30 not in the network: .*and 22 more"):
        load_weights(net(2), save(many, tmp_path / "w.pt"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_anywhere(tmp_path: Path, source: dict[str, Tensor], name: str) -> None:
    path = save(source, tmp_path / name)
    whole = path.read_bytes()
    model = net(2)
    before = snapshot(model)
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptArtifact, match="is not a complete"):
            load_weights(model, path)
    assert equal(snapshot(model), before)
    path.write_bytes(whole)
    load_weights(model, path)


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "executed"),)


@pytest.mark.parametrize("new", [True, False])
def test_pickled_objects_are_never_run(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": Trap(tmp_path)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CorruptArtifact, match=r"pickled Python objects \(.*mkdir\)"):
        load_weights(net(2), path)
    assert not (tmp_path / "executed").exists()


def test_whole_pickled_model(tmp_path: Path) -> None:
    torch.save(net(1), tmp_path / "w.pt")
    with pytest.raises(CorruptArtifact, match=r"Sequential.*Save model.state_dict\(\)"):
        load_weights(net(2), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "contains a Tensor, not a state dict"),
        ([torch.zeros(3)], "contains a list, not a state dict"),
        ({}, "contains an empty dict"),
        ({"weights": {"a": torch.zeros(1)}}, "not tensors: 'weights'"),
        ({3: torch.zeros(1)}, "keys that are not strings: 3"),
    ],
)
def test_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CorruptArtifact, match=message):
        load_weights(net(2), save(content, tmp_path / "w.pt"))


def test_wrong_format(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = save(source, tmp_path / "w.pt").rename(tmp_path / "w.safetensors")
    with pytest.raises(CorruptArtifact, match="of another format"):
        load_weights(net(2), path)
    (tmp_path / "text.pt").write_text("these are no weights")
    with pytest.raises(CorruptArtifact, match="of another format"):
        load_weights(net(2), tmp_path / "text.pt")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match=r"gone.safetensors' does not exist"):
        load_weights(net(2), tmp_path / "gone.safetensors")
    with pytest.raises(RankfoldError, match="is a folder"):
        load_weights(net(2), tmp_path)
