"""An artifact or plan fits a network only if that computes the same function of its weights."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rankfold as rf
from rankfold._hashing import tensor_hash
from rankfold.errors import CorruptArtifact, PlanMismatch, RankfoldWarning
from rankfold.inventory import static_inventory
from rankfold.records import Choice

X = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))


def conv(**changes: Any) -> nn.Module:
    return nn.Conv2d(8, 8, 3, **{"padding": 1, **changes})


def network(first: nn.Module, middle: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(first, middle or nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()


def artifact(model: nn.Module, folder: Path, **choices: Choice) -> Path:
    return rf.save(rf.apply(model, rf.Plan(layers=choices)), folder)


FACTORED = Choice(method="svd", ranks=(4,))

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "padding": lambda: conv(padding=0),
    "one padding": lambda: conv(padding=(1, 0)),
    "dilation": lambda: conv(dilation=2),
    "stride": lambda: conv(stride=2),
    "reflect": lambda: conv(padding_mode="reflect"),
    "circular": lambda: conv(padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1),
    "bias": lambda: conv(bias=False),
}


@pytest.mark.parametrize("changed", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("kept", [False, True])
def test_a_convolution_of_another_function(changed: Callable[[], nn.Module], kept: bool, tmp_path: Path) -> None:
    """Factored or kept, with a plan that says what it was made for or with one made by hand."""
    other = network(changed())
    name = "2" if kept else "0"
    bare = artifact(network(conv()), tmp_path / "bare", **{name: FACTORED})
    overrides = {"0": None, "2": None, name: ("svd", 4)}
    made = rf.plan(network(conv()), X, overrides=overrides, strategy="uniform")
    whole = rf.save(rf.apply(network(conv()), made), tmp_path / "whole")
    for folder in (bare, whole):
        with pytest.raises(PlanMismatch):
            rf.load(folder, other)
        assert rf.load(folder, network(conv()))(X).shape == (2, 8, 9, 9)
    with pytest.raises(
        PlanMismatch, match="layer '0' is Conv.*, but the plan was made for Conv2d 8->8 3x3 s1 g1, padding"
    ):
        rf.apply(other, made)


TRANSPOSED = {"padding": 0, "output_padding": 0, "dilation": 2, "stride": 3}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_of_another_function(name: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"padding": 1, "output_padding": 1, "stride": 2}
    folder = artifact(network(nn.ConvTranspose2d(8, 8, 3, **usual)), tmp_path / "a", **{"0": FACTORED})
    with pytest.raises(PlanMismatch):
        rf.load(folder, network(nn.ConvTranspose2d(8, 8, 3, **{**usual, name: TRANSPOSED[name]})))
    assert rf.load(folder, network(nn.ConvTranspose2d(8, 8, 3, **usual)))(X).shape == (2, 8, 18, 18)


class Attends(nn.Module):
    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, **{"num_heads": 2, "batch_first": True, **changes})

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("changes", [{"num_heads": 4}, {"batch_first": False}, {"add_zero_attn": True}])
@pytest.mark.parametrize("projection", ["attention.q_proj", "attention.out_proj", None])
def test_an_attention_of_another_function(changes: dict[str, Any], projection: str | None, tmp_path: Path) -> None:
    def pair(**kwargs: Any) -> nn.Module:
        return nn.Sequential(Attends(**kwargs), nn.Linear(8, 8)).eval()

    chosen = {"1" if projection is None else f"0.{projection}": FACTORED}
    folder = artifact(pair(), tmp_path / "a", **chosen)
    with pytest.raises(PlanMismatch, match="attention of 2 heads|settings"):
        rf.load(folder, pair(**changes))
    assert rf.load(folder, pair(dropout=0.5))(torch.ones(1, 3, 8)).shape == (1, 3, 8)


OTHERS: dict[str, tuple[nn.Module, nn.Module]] = {
    "activation": (nn.ReLU(), nn.GELU()),
    "nothing": (nn.Identity(), nn.ReLU()),
    "approximation": (nn.GELU(), nn.GELU(approximate="tanh")),
    "slope": (nn.LeakyReLU(), nn.LeakyReLU(0.2)),
    "pooling kind": (nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)),
    "pooling stride": (nn.MaxPool2d(2), nn.MaxPool2d(2, 1)),
    "pooling padding": (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "batch norm eps": (nn.BatchNorm2d(8), nn.BatchNorm2d(8, eps=0.1)),
    "layer norm eps": (nn.LayerNorm((9, 9)), nn.LayerNorm((9, 9), eps=0.1)),
    "group norm": (nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)),
    "softmax": (nn.Softmax(1), nn.Softmax(2)),
    "upsample": (nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3)),
    "gone": (nn.Sequential(nn.Tanh()), nn.Sequential()),
}


@pytest.mark.parametrize(("saved", "other"), OTHERS.values(), ids=OTHERS)
def test_a_module_without_factors_of_another_function(saved: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    folder = artifact(network(conv(), saved), tmp_path / "a", **{"0": FACTORED})
    with pytest.raises(PlanMismatch, match=r"'1(\.0)?'"):
        rf.load(folder, network(conv(), other))
    assert rf.load(folder, network(conv(), saved))(X).isfinite().all()


SAME: dict[str, tuple[nn.Module, nn.Module]] = {
    "in place": (nn.ReLU(), nn.ReLU(inplace=True)),
    "dropout": (nn.Dropout(0.1), nn.Dropout(0.7)),
    "no dropout": (nn.Dropout(0.1), nn.Identity()),
    "spelling": (nn.MaxPool2d(2), nn.MaxPool2d((2, 2), (2, 2), (0, 0))),
    "momentum": (nn.BatchNorm2d(8), nn.BatchNorm2d(8, momentum=0.5)),
    "synchronized": (nn.BatchNorm2d(8), nn.SyncBatchNorm(8)),
    "container": (nn.Sequential(nn.ReLU()), nn.ModuleDict({"0": nn.ReLU()})),
}


@pytest.mark.parametrize(("saved", "other"), SAME.values(), ids=SAME)
def test_what_changes_no_function_is_no_difference(saved: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    folder = artifact(network(conv(), saved), tmp_path / "a", **{"0": FACTORED})
    assert rf.load(folder, network(conv(), other)) is not None


def test_one_padding_has_one_fingerprint() -> None:
    def prints(**settings: Any) -> str:
        return static_inventory(nn.Conv2d(4, 4, 3, **settings))[0].fingerprint

    assert prints(padding="same") == prints(padding=1) != prints(padding=0) == prints(padding="valid")
    assert prints(padding="same", dilation=2) == prints(padding=2, dilation=2)
    assert prints(padding_mode="reflect") == prints() != prints(padding=1, padding_mode="reflect")


def test_data_types_are_no_difference(tmp_path: Path) -> None:
    folder = artifact(network(conv()), tmp_path / "a", **{"0": FACTORED})
    with pytest.warns(RankfoldWarning, match=r"torch.float32 -> torch.float64"):
        assert rf.load(folder, network(conv()).double())[2].weight.dtype == torch.float64


def test_plans_of_earlier_versions_are_compared_as_far_as_they_tell() -> None:
    plan = rf.Plan(layers={"0": FACTORED}, fingerprint={"0": "Conv2d 8->8 3x3 s1 g1"})
    assert rf.apply(network(conv(padding=0)), plan)(X).shape == (2, 8, 7, 7)
    with pytest.raises(
        PlanMismatch, match="layer '0' is Conv2d 8->8 3x3 s2 g1, but the plan was made for Conv2d 8->8 3x3"
    ):
        rf.apply(network(conv(stride=2)), plan)


def tampered(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    """Change the tensors or the metadata of an artifact, with checksums that fit."""
    file = next(folder.glob("*.safetensors"))
    with safe_open(str(file), framework="pt") as handle:
        metadata = dict(handle.metadata())
    tensors = load_file(file)
    change(tensors, metadata)
    aliases = {name: tensors[source] for name, source in json.loads(metadata["aliases"]).items()}
    save_file(tensors, file, {**metadata, "tensors_sha256": tensor_hash({**tensors, **aliases})})
    return folder


def without_record(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["architecture"], metadata["architecture_sha256"]


def test_artifacts_of_earlier_versions_load(tmp_path: Path) -> None:
    folder = tampered(artifact(network(conv()), tmp_path / "a", **{"0": FACTORED}), without_record)
    assert rf.load(folder, network(conv()))(X).shape == (2, 8, 9, 9)


@pytest.mark.parametrize("record", ["[]", "{", '{"0": 3}', '{"0": {"type": 3}}', "[" * 100_000])
def test_a_damaged_record_is_refused(record: str, tmp_path: Path) -> None:
    def damage(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata.update(architecture=record, architecture_sha256=hashlib.sha256(record.encode()).hexdigest())

    folder = tampered(artifact(network(conv()), tmp_path / "a", **{"0": FACTORED}), damage)
    with pytest.raises(CorruptArtifact, match="record of the architecture"):
        rf.load(folder, network(conv()))


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "beyond": lambda o: o + 1,
    "negative": lambda o: o - 1,
    "twice": lambda o: o.clone().fill_(0),
    "huge": lambda o: o.clone().fill_(2**30),
    "int64": lambda o: o.long(),
    "float": lambda o: o.float(),
}


@pytest.mark.parametrize("damage", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_gauge_that_names_no_order_of_channels(
    damage: Callable[[Tensor], Tensor], groups: int, tmp_path: Path
) -> None:
    model = network(nn.Conv2d(8, 8, 3, padding=1, groups=groups))
    gauged = Choice(method="svd", ranks=(3,), gauge=True)
    folder = artifact(model, tmp_path / "a", **{"0": gauged})
    expected = rf.load(folder, model)(X)
    seen: list[str] = []

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        seen[:] = [name for name in tensors if name.endswith(".order")]
        tensors[seen[0]] = damage(tensors[seen[0]])

    with pytest.raises(CorruptArtifact, match="is not a permutation of channels"):
        rf.load(tampered(folder, change), model)
    assert seen
    assert expected.isfinite().all()


def test_an_order_stays_within_its_groups(tmp_path: Path) -> None:
    model = network(nn.Conv2d(8, 8, 3, padding=1, groups=2))
    folder = artifact(model, tmp_path / "a", **{"0": Choice(method="svd", ranks=(3,), gauge=True)})

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        name = next(name for name in tensors if name.endswith(".order"))
        tensors[name] = tensors[name].flip(0)

    with pytest.raises(CorruptArtifact, match="is not a permutation of channels"):
        rf.load(tampered(folder, change), model)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * nn.Conv2d.forward(self, input)


def doubled_instance() -> nn.Module:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    layer.forward = types.MethodType(Doubled.forward, layer)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("extra", "last"),
    [
        (nn.Softmax(1), None),
        (nn.GELU(), None),
        (nn.MaxPool2d(2), None),
        (None, lambda: Doubled(8, 8, 3, padding=1)),
        (None, doubled_instance),
    ],
    ids=["softmax", "gelu", "pool", "own forward", "forward of the instance"],
)
def test_what_is_added_to_the_network(
    extra: nn.Module | None, last: Callable[[], nn.Module] | None, tmp_path: Path
) -> None:
    folder = artifact(network(conv()), tmp_path / "a", **{"0": FACTORED})
    other = network(conv())
    if last is not None:
        other[2] = last()
    if extra is not None:
        other.append(extra)
    with pytest.raises(PlanMismatch, match="differs from the one that was saved"):
        rf.load(folder, other)
    passing = network(conv()).append(nn.Dropout(0.5)).append(nn.Identity()).eval()
    torch.testing.assert_close(rf.load(folder, passing)(X), rf.load(folder, network(conv()))(X))


def test_the_activation_of_a_transformer_layer_as_a_module(tmp_path: Path) -> None:
    def encoder(activation: Any) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True).eval()

    folder = artifact(encoder("relu"), tmp_path / "a", linear1=FACTORED)
    with pytest.raises(PlanMismatch, match="activation"):
        rf.load(folder, encoder(nn.GELU()))
