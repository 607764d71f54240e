"""Stripped models compile with ``torch.jit.script``: every method, gauged too, and attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods
from rankfold.inventory import static_inventory
from rankfold.records import Choice

# Deprecated since torch 2.9, and still what mobile and C++ runtimes load.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.{name}` is:{kind}")
    for name in ("script", "script_method", "save", "load")
    for kind in ("FutureWarning", "DeprecationWarning")
]

LAYERS = {
    "linear": (nn.Linear(24, 32), (3, 24)),
    "linear, many dimensions": (nn.Linear(24, 16, bias=False), (2, 3, 4, 24)),
    "linear, one row": (nn.Linear(24, 16), (24,)),
    "1d": (nn.Conv1d(8, 16, 3, padding=1), (2, 8, 10)),
    "2d": (nn.Conv2d(8, 16, 3, stride=2, padding="valid", groups=2), (2, 8, 7, 7)),
    "2d, same": (nn.Conv2d(8, 16, (3, 5), padding="same", padding_mode="circular"), (2, 8, 7, 7)),
    "3d": (nn.Conv3d(6, 8, 3), (1, 6, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1), (2, 8, 5, 5)),
}


def _choices() -> list[tuple[str, str, bool]]:
    found = []
    for method in methods.registry.names():
        for kind, (layer, _) in LAYERS.items():
            info = static_inventory(layer)[0]
            if methods.get(method).supports(info) is None:
                found.append((method, kind, False))
                if _gauges(method, layer):
                    found.append((method, kind, True))
    return found


def _middle(method: str, layer: nn.Module) -> tuple[int, ...]:
    grid = methods.get(method).rank_grid(static_inventory(layer)[0])
    return grid[len(grid) // 4]


def _gauges(method: str, layer: nn.Module) -> bool:
    info = static_inventory(layer)[0]
    try:
        methods.check_choice(info, Choice(method=method, ranks=_middle(method, layer), gauge=True))
    except rf.RankfoldError:
        return False
    return True


def _same(model: nn.Module, scripted: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-5, atol=1e-5)


def test_every_method_is_compiled() -> None:
    assert {method for method, _, _ in _choices()} == set(methods.registry.names())
    assert {method for method, _, gauged in _choices() if gauged} >= {"svd", "qr", "tucker", "tt", "spatial_svd", "tt3"}


@pytest.mark.parametrize(("method", "kind", "gauge"), _choices())
def test_a_stripped_layer_is_compiled(method: str, kind: str, gauge: bool) -> None:
    layer, shape = LAYERS[kind]
    net = nn.Sequential(layer, nn.ReLU()).eval()
    choice = Choice(method=method, ranks=_middle(method, layer), gauge=gauge)
    small = rf.apply(net, rf.Plan(layers={"0": choice}))
    x = torch.randn(shape)
    scripted = torch.jit.script(rf.strip(small))
    _same(small, scripted, x)
    with torch.no_grad():  # compressed: not what the dense layer computes
        assert not torch.allclose(scripted(x), net(x), rtol=1e-3, atol=1e-3)


class Block(nn.Module):
    """Attention as a model calls it, with a mask or without."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        out, _ = self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)
        return self.norm(x + out)


class Weighing(Block):
    """Attention whose weights are asked for."""

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        out, weights = self.attention(x, x, x, key_padding_mask=hidden)
        assert weights is not None
        return out + weights.sum()


@pytest.mark.parametrize("gauge", [False, True])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Block, {"batch_first": True}),
        (Block, {"bias": False}),
        (Block, {"add_bias_kv": True, "add_zero_attn": True}),
        (Weighing, {"batch_first": True, "dropout": 0.1}),
    ],
)
def test_a_stripped_attention_is_compiled(cls: type[Block], options: dict[str, object], gauge: bool) -> None:
    net = cls(**options).eval()
    names = ["attention.q_proj", "attention.v_proj", "attention.out_proj"]
    choice = Choice(method="svd", ranks=(5,), gauge=gauge)
    small = rf.apply(net, rf.Plan(layers=dict.fromkeys(names, choice)))
    x, hidden = torch.randn(3, 3, 16), torch.tensor([[False, False, True]]).expand(3, 3)
    scripted = torch.jit.script(rf.strip(small))
    _same(small, scripted, x)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x, hidden), small(x, hidden), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(scripted(x, hidden), scripted(x), atol=1e-3)


def test_a_compiled_model_survives_saving(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)).eval()
    layers = {"0": Choice(method="ttm", ranks=(4,)), "2": Choice(method="svd", ranks=(3,), gauge=True)}
    small = rf.apply(net, rf.Plan(layers=layers))
    torch.jit.script(rf.strip(small)).save(str(tmp_path / "model.pt"))
    _same(small, torch.jit.load(str(tmp_path / "model.pt")), torch.randn(2, 24))
