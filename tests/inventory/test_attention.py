"""Attention is four linear layers; the fused paths do not hide layers; whole transformers work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.inventory import inspect
from rankfold.records import Call, OtherModule


class Cross(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, by_name: bool = False) -> Tensor:
        if by_name:
            return self.attention(value=v, key=k, query=q)[0]
        return self.attention(q, k, v, need_weights=False)[0]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_calls_of_a_cross_attention(batch_first: bool, by_name: bool) -> None:
    net = Cross(kdim=3, vdim=5, batch_first=batch_first)
    order = (2, 7) if batch_first else (7, 2)
    queries = (2, 6) if batch_first else (6, 2)
    example = (torch.zeros(*queries, 4), torch.zeros(*order, 3), torch.zeros(*order, 5), by_name)
    inventory = inspect(net, example)
    assert [(x.name, x.in_channels, x.out_channels, x.calls[0].batch) for x in inventory] == [
        ("attention.q_proj", 4, 4, 12),
        ("attention.k_proj", 3, 4, 14),
        ("attention.v_proj", 5, 4, 14),
        ("attention.out_proj", 4, 4, 12),
    ]
    assert all(layer.skip is None and layer.note is None for layer in inventory)
    assert inventory.others == ()
    assert inventory.total.params == sum(p.numel() for p in net.parameters())
    products = 2 * 2 * 2 * 6 * 7 * 2  # batch x heads x (scores, values) x 6 x 7 x head size
    assert inventory.total.macs == sum(c.macs for c in inventory.costs.values()) + products


def test_calls_without_a_batch() -> None:
    inventory = inspect(Cross(), (torch.zeros(6, 4), torch.zeros(7, 4), torch.zeros(7, 4)))
    assert [layer.calls for layer in inventory] == [(Call(batch=n),) for n in (6, 7, 7, 6)]


def test_an_attention_alone_and_its_extra_parameters() -> None:
    x = torch.zeros(3, 1, 4)
    inventory = inspect(nn.MultiheadAttention(4, 2, bias=False, add_bias_kv=True), (x, x, x))
    assert [layer.name for layer in inventory] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert not any(layer.bias for layer in inventory)
    assert inventory.others == (
        OtherModule(
            name="",
            type_name="MultiheadAttention",
            params=8,
            reason="added key and value of the attention",
        ),
    )


def test_a_shared_attention_has_aliases() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    inventory = inspect(nn.Sequential(layer, layer), torch.zeros(3, 1, 4))
    assert inventory.layer("0.self_attn.q_proj").aliases == ("1.self_attn.q_proj",)
    assert inventory.layer("1.linear1").calls == (Call(batch=3, count=2),)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, query: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self.out_proj(functional.scaled_dot_product_attention(q, k, v))


def test_an_attention_with_its_own_forward() -> None:
    inventory = inspect(OwnAttention(4, 2), torch.zeros(1, 3, 4))
    assert [(layer.name, layer.skip) for layer in inventory] == [("out_proj", None)]
    assert [(o.params, o.reason) for o in inventory.others] == [(60, "OwnAttention has its own forward")]


class Functional(nn.Module):
    """Hands an attention's weights to a function, as some published models do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention
        return functional.multi_head_attention_forward(
            x, x, x, 4, 2, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0,
            a.out_proj.weight, a.out_proj.bias,
        )[0]  # fmt: skip


def test_an_attention_used_by_a_function_is_skipped() -> None:
    inventory = inspect(Functional(), torch.zeros(3, 1, 4))
    assert len(inventory.layers) == 4
    assert all("without calling the layer" in str(layer.skip) for layer in inventory)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_fused_encoder_shows_every_layer(enabled: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        inventory = inspect(net, torch.zeros(2, 5, 8))
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert len(inventory.layers) == 12
    assert all(layer.calls == (Call(batch=10),) for layer in inventory)
    assert all(layer.skip is None for layer in inventory)


def test_a_whole_transformer() -> None:
    net = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    inventory = inspect(net, (torch.zeros(2, 5, 8), torch.zeros(2, 3, 8)))
    assert len(inventory.layers) == 6 + 10
    assert all(layer.calls and layer.skip is None for layer in inventory)
    cross = {n: inventory.layer(f"decoder.layers.0.multihead_attn.{n}_proj").calls for n in "qkv"}
    assert cross == {"q": (Call(batch=6),), "k": (Call(batch=10),), "v": (Call(batch=10),)}
