"""The twin of ``nn.MultiheadAttention`` gives its results; the fused paths around it are off."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rankfold.errors import AttentionError, ModelError, NoMatchingLayer
from rankfold.surgery.attention import (
    SeparatedAttention,
    separate_attention_,
)
from rankfold.surgery.exchange import disable_fused_paths_

HEADS, EMBED, TARGET, SOURCE, BATCH = 2, 8, 3, 5, 4

MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "own_sizes": {"kdim": 6, "vdim": 10, "batch_first": True},
    "own_sizes_no_bias": {"kdim": 6, "bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "bias_kv_zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
}


def make(config: str, **more: Any) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(EMBED, HEADS, **MODULES[config], **more)
    for parameter in attention.parameters():  # biases start at zero, which would hide a mix-up
        nn.init.normal_(parameter, std=0.5)
    return attention


def inputs(attention: nn.MultiheadAttention, *, batched: bool = True) -> list[Tensor]:
    sizes = [(TARGET, EMBED), (SOURCE, attention.kdim), (SOURCE, attention.vdim)]
    if not batched:
        return [torch.randn(size) for size in sizes]
    if attention.batch_first:
        return [torch.randn(BATCH, *size) for size in sizes]
    return [torch.randn(length, BATCH, features) for length, features in sizes]


def masks(*, batched: bool = True) -> dict[str, dict[str, Any]]:
    batch = BATCH if batched else 1
    causal = torch.ones(TARGET, SOURCE).triu(1).bool()
    each = torch.rand(batch * HEADS, TARGET, SOURCE) < 0.3
    hidden = torch.zeros(batch, SOURCE, dtype=torch.bool)
    hidden[:, -2:] = True
    hidden = hidden if batched else hidden[0]
    number = torch.zeros(TARGET, SOURCE).masked_fill(causal, float("-inf"))
    return {
        "none": {},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(TARGET, SOURCE)},
        "each_head": {"attn_mask": each},
        "causal_hint": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": hidden},
        "float_padding": {"key_padding_mask": torch.randn(hidden.shape)},
        "both": {"attn_mask": causal, "key_padding_mask": hidden},
        "both_float": {"attn_mask": number, "key_padding_mask": torch.randn(hidden.shape)},
        "both_causal": {"attn_mask": causal, "key_padding_mask": hidden, "is_causal": True},
    }


def assert_same(
    got: tuple[Tensor, Tensor | None], wanted: tuple[Tensor, Tensor | None], tolerance: float = 1e-5
) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("config", MODULES)
def test_twin_gives_the_same_results(config: str, batched: bool, training: bool) -> None:
    attention = make(config).train(training)
    twin = SeparatedAttention(attention)
    arguments = inputs(attention, batched=batched)
    for name, mask in masks(batched=batched).items():
        for need, average in itertools.product([True, False], [True, False]):
            options = {**mask, "need_weights": need, "average_attn_weights": average}
            with torch.no_grad():
                assert_same(twin(*arguments, **options), attention(*arguments, **options))
        with torch.no_grad():
            other = twin(arguments[0] + 1, *arguments[1:], **mask)[0]
            assert not torch.allclose(other, twin(*arguments, **mask)[0]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_twin_keeps_the_dtype(dtype: torch.dtype) -> None:
    attention = make("batch_first").to(dtype).eval()
    x = torch.randn(BATCH, TARGET, EMBED, dtype=dtype)
    twin = SeparatedAttention(attention)
    assert {p.dtype for p in twin.parameters()} == {dtype}
    mask = torch.ones(TARGET, TARGET, dtype=torch.bool).triu(1)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-2  # 8 bits, in another order of sums
    for need in (True, False):
        with torch.no_grad():
            got = twin(x, x, x, attn_mask=mask, need_weights=need)
            assert_same(got, attention(x, x, x, attn_mask=mask, need_weights=need), tolerance)


@pytest.mark.parametrize("need_weights", [True, False])
def test_twin_drops_the_same_weights_and_gives_the_same_gradients(need_weights: bool) -> None:
    attention = make("batch_first", dropout=0.5).double()
    twin = SeparatedAttention(attention)
    results = []
    for module in (attention, twin):
        x = torch.linspace(-1, 1, BATCH * TARGET * EMBED, dtype=torch.float64)
        x = x.view(BATCH, TARGET, EMBED).requires_grad_()
        torch.manual_seed(1)
        output, weights = module(x, x, x, need_weights=need_weights)
        output.square().sum().backward()
        results.append((output, weights, x.grad))
    assert_same(results[1], results[0], 1e-10)
    assert attention.in_proj_weight.grad is not None
    packed = torch.cat([p.weight.grad for p in (twin.q_proj, twin.k_proj, twin.v_proj)])
    torch.testing.assert_close(packed, attention.in_proj_weight.grad, rtol=1e-10, atol=1e-10)


def test_twin_under_autocast() -> None:
    attention = make("bias_kv")
    twin = SeparatedAttention(attention)
    arguments = inputs(attention)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for mask in masks().values():
            for need in (True, False):
                options = {**mask, "need_weights": need}
                got, wanted = twin(*arguments, **options), attention(*arguments, **options)
                torch.testing.assert_close(got[0].float(), wanted[0].float(), rtol=0.1, atol=0.1)


def test_twin_consists_of_stock_layers() -> None:
    attention = make("own_sizes")
    state = torch.get_rng_state()
    twin = SeparatedAttention(attention)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(n, type(m)) for n, m in twin.named_children()] == [
        (name, nn.Linear) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    assert twin.out_proj.weight is attention.out_proj.weight
    assert twin.k_proj.weight is attention.k_proj_weight
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in attention.parameters())


def test_twin_calls_its_projections() -> None:
    attention = make("batch_first").eval()
    twin = SeparatedAttention(attention)
    called = []
    for name, child in twin.named_children():
        child.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        twin(*inputs(attention))
    assert called == ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": torch.zeros(2, 2)}, "attn_mask must have shape"),
        ({"attn_mask": torch.zeros(3, TARGET, SOURCE)}, "attn_mask must have shape"),
        ({"key_padding_mask": torch.zeros(1, SOURCE)}, "key_padding_mask must have shape"),
        ({"attn_mask": torch.zeros(TARGET, SOURCE, dtype=torch.int64)}, "boolean or floating"),
        ({"is_causal": True}, "is_causal is only a hint"),
    ],
)
def test_bad_masks_are_refused(options: dict[str, Any], message: str) -> None:
    attention = make("plain")
    twin = SeparatedAttention(attention)
    with pytest.raises(AttentionError, match=message) as caught:
        twin(*inputs(attention), **options)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises((RuntimeError, AssertionError)):  # and torch refuses them too
        attention(*inputs(attention), **options)


def test_nested_tensors_are_refused() -> None:
    twin = SeparatedAttention(make("batch_first"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are announced as a prototype
        x = torch.nested.nested_tensor([torch.randn(2, EMBED), torch.randn(3, EMBED)])
    with pytest.raises(RuntimeError, match="does not support nested tensors"):
        twin(x, x, x)


class TwoUses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([make("batch_first")])
        self.second = self.first[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first[0](x, x, x)[0]
        return self.second(x, x, x)[0]


def test_separate_swaps_every_use_and_keeps_flags() -> None:
    model = TwoUses().eval()
    attention = model.second
    attention.in_proj_weight.requires_grad_(False)
    x = torch.randn(BATCH, TARGET, EMBED)
    with torch.no_grad():
        before = model(x)
        twin = separate_attention_(model, "first.0")
        assert model.second is twin
        assert model.first[0] is twin
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert not any(module.training for module in twin.modules())
    frozen = [name for name, p in twin.named_parameters() if not p.requires_grad]
    assert frozen == ["q_proj.weight", "k_proj.weight", "v_proj.weight"]


def test_separate_folds_a_weight_norm() -> None:
    model = nn.Sequential()
    model.attention = parametrizations.weight_norm(make("batch_first"), "in_proj_weight")
    x = torch.randn(BATCH, TARGET, EMBED)
    with torch.no_grad():
        before = model.attention(x, x, x)[0]
        separate_attention_(model, "attention")
        torch.testing.assert_close(model.attention(x, x, x)[0], before, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_separate_says_what_it_cannot_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), OwnAttention(EMBED, HEADS))
    with pytest.raises(ModelError, match="'0' is of type Linear"):
        separate_attention_(model, "0")
    with pytest.raises(ModelError, match="OwnAttention"):
        separate_attention_(model, "1")
    with pytest.raises(NoMatchingLayer, match="'2'"):
        separate_attention_(model, "2")


def test_an_attention_alone_is_returned_as_its_twin() -> None:
    attention = make("plain")
    assert isinstance(separate_attention_(attention, ""), SeparatedAttention)


def encoder(norm_first: bool = False) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def run(model: nn.Module, *, grad: bool = False) -> Tensor:
    x = torch.linspace(-1, 1, 2 * 5 * EMBED).view(2, 5, EMBED)
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.simplefilter("ignore")  # nested tensors are announced as a prototype
        return model(x, src_key_padding_mask=PADDING)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
def test_a_transformer_encoder_uses_the_twin(layers: list[int], norm_first: bool, grad: bool) -> None:
    model = encoder(norm_first)
    for i, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3 + i / 100)
    before = run(model)
    changed = copy.deepcopy(model)
    for i in layers:
        separate_attention_(changed, f"layers.{i}.self_attn")
    after = run(changed, grad=grad)
    seen = ~PADDING  # torch fills what is hidden with zeros on its nested path only
    torch.testing.assert_close(after[seen], before[seen], rtol=1e-4, atol=1e-4)
    twin = changed.get_submodule(f"layers.{layers[0]}.self_attn")
    assert isinstance(twin, SeparatedAttention)
    nn.init.zeros_(twin.out_proj.weight)
    assert not torch.allclose(run(changed)[seen], before[seen], atol=1e-3)


class Counted(nn.Linear):
    """A replaced layer, as far as the encoder layer is concerned."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input)


@pytest.mark.parametrize("disable", [True, False])
def test_a_replaced_linear_is_called_once_the_fused_path_is_off(disable: bool) -> None:
    model = encoder()
    counted = Counted(EMBED, 16)
    layer = model.layers[1]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    layer.linear1 = counted
    if disable:
        disable_fused_paths_(model, {counted})
    run(model)
    assert counted.calls == (1 if disable else 0)
    first = model.layers[0]
    assert isinstance(first, nn.TransformerEncoderLayer)
    assert first.activation_relu_or_gelu == 1  # a layer without replaced parts stays fused
