"""Applying plans: everything is checked first, the right modules are swapped, nothing else changes."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.errors import (
    ConfigError,
    InvalidWeight,
    PlanMismatch,
    RankError,
    RankfoldError,
    UnknownNameError,
    UnsupportedLayer,
)
from rankfold.inventory import layer_weight, static_inventory
from rankfold.records import Choice, Plan
from rankfold.surgery import Factored, apply_plan_, check_plan, copy_model, factored_layers, plan_of, strip
from rankfold.surgery.attention import SeparatedAttention
from rankfold.surgery.factored import FactoredLinear, build


def network() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(4, 8, 3, padding=1),
            norm=nn.BatchNorm2d(8),
            depthwise=nn.Conv2d(8, 8, 3, groups=8),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(8, 6),
        )
    ).eval()


X = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


def plan_for(model: nn.Module, **choices: Choice) -> Plan:
    layers = static_inventory(model)
    kept = {layer.name: Choice(reason="by hand") for layer in layers}
    names = {key.replace("__", "."): choice for key, choice in choices.items()}
    return Plan(layers={**kept, **names}, fingerprint={layer.name: layer.describe() for layer in layers})


def choice(method: str, *ranks: int, **options: Any) -> Choice:
    return Choice(method=method, ranks=ranks, options=options)


def test_full_ranks_compute_the_same_and_only_planned_layers_change() -> None:
    model = network()
    expected = model(X)
    others = {name: model.get_submodule(name) for name in ("norm", "depthwise", "pool")}
    small = apply_plan_(model, plan_for(model, conv=choice("tucker", 8, 4), fc=choice("svd", 6)))
    assert small is model
    torch.testing.assert_close(small(X), expected, rtol=1e-4, atol=1e-5)
    assert list(factored_layers(small)) == ["conv", "fc"]
    assert all(small.get_submodule(name) is module for name, module in others.items())
    assert [name for name, _ in small.named_children()] == ["conv", "norm", "depthwise", "pool", "flat", "fc"]
    rough = apply_plan_(network(), plan_for(network(), conv=choice("tucker", 1, 1), fc=choice("svd", 1)))
    assert not torch.allclose(rough(X), expected, atol=1e-3)


BAD: list[tuple[dict[str, Choice], type[Exception], tuple[str, ...]]] = [
    ({"fc": choice("svd", 0)}, RankError, ("fc", "1..6", "[0]")),
    ({"fc": choice("svd", -1)}, RankError, ("fc", "1..6", "[-1]")),
    ({"fc": choice("svd", 7)}, RankError, ("fc", "1..6", "[7]")),
    ({"fc": choice("svd", 2, 2)}, RankError, ("fc", "one integer")),
    ({"conv": choice("tucker", 2)}, RankError, ("conv", "2 integers")),
    ({"fc": choice("tucker", 2, 2)}, UnsupportedLayer, ("fc", "only supports convolutions")),
    ({"depthwise": choice("svd", 1)}, UnsupportedLayer, ("depthwise", "depthwise convolution")),
    ({"fc": choice("svdd", 2)}, UnknownNameError, ("svdd", "Did you mean 'svd'")),
    ({"conv": choice("tucker", 2, 2, iteration=3)}, UnknownNameError, ("iteration", "iterations")),
    ({"conv": choice("tucker", 2, 2, iterations=-3)}, ConfigError, ("iterations", "-3")),
    ({"nothing": choice("svd", 1)}, PlanMismatch, ("nothing", "not in the model")),
]


@pytest.mark.parametrize(("choices", "error", "words"), BAD)
def test_bad_plans_change_nothing(choices: dict[str, Choice], error: type[Exception], words: tuple[str, ...]) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    # A good choice besides, which must not be applied either.
    plan = plan_for(model, **{"fc": choice("svd", 2), "conv": choice("svd", 2), **choices})
    with pytest.raises(error) as caught:
        apply_plan_(model, plan)
    for word in words:
        assert word in str(caught.value)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_factor_of_the_wrong_shape_names_the_method() -> None:
    info = next(layer for layer in static_inventory(network()) if layer.name == "fc")
    blueprint = methods.get("svd").blueprint(info, (3,))
    factors = [torch.ones(3, 8), torch.ones(3, 6)]
    with pytest.raises(RankfoldError, match=r"method 'svd' returned a factor of shape \(3, 6\) for the stage 'output'"):
        build(blueprint, info, choice("svd", 3), dtype=X.dtype, device=X.device, factors=factors)


def test_a_weight_that_is_not_finite_changes_nothing() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("fc.weight")[2, 3] = float("nan")
    modules = dict(model.named_modules())
    with pytest.raises(InvalidWeight, match="'fc'.*1 NaN"):
        apply_plan_(model, plan_for(model, conv=choice("svd", 2), fc=choice("svd", 2)))
    assert dict(model.named_modules()) == modules


def test_every_mismatch_is_named() -> None:
    other = network()
    other.set_submodule("fc", nn.Linear(8, 5))
    plan = plan_for(network(), conv=choice("svd", 2), gone=choice("svd", 1))
    with pytest.raises(PlanMismatch) as caught:
        check_plan(other, plan)
    text = str(caught.value)
    assert "'fc' is Linear 8->5, but the plan was made for Linear 8->6" in text
    assert "'gone' is not in the model" in text
    assert "'conv'" not in text


class Tied(nn.Module):
    """`a` is used under two names; `b` and `c` share a weight but not the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.alias = self.a
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 6)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.alias(self.a(x)).relu()).relu())


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    model = Tied().eval()
    x = X[:, 0, :6, 0]
    expected = model(x)
    small: Any = apply_plan_(copy_model(model), plan_for(model, a=choice("svd", 6), b=choice("svd", 6)))
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    assert small.a is small.alias
    assert small.b is not small.c
    assert small.b.input.weight is small.c.input.weight
    assert small.b.output.weight is small.c.output.weight
    assert small.b.output.bias is not small.c.output.bias
    torch.testing.assert_close(small.c.bias, model.c.bias)
    small(x).sum().backward()
    assert (
        sum(p.numel() for p in small.parameters())
        == sum(p.numel() for p in (*small.a.parameters(), *small.b.parameters())) + 6
    )


def test_a_model_that_is_one_layer_is_replaced() -> None:
    layer = nn.Linear(6, 5)
    small = apply_plan_(layer, Plan(layers={"": choice("svd", 5)}))
    assert isinstance(small, FactoredLinear)
    x = torch.ones(2, 6)
    torch.testing.assert_close(small(x), layer(x), rtol=1e-4, atol=1e-5)


def test_training_mode_frozen_parameters_and_hooks_are_kept() -> None:
    model = network()
    model.train()
    model.get_submodule("fc").eval().requires_grad_(False)
    seen: list[str] = []
    model.get_submodule("conv").register_forward_hook(lambda *_: seen.append("after"))
    model.get_submodule("conv").register_forward_pre_hook(lambda *_: seen.append("before"))
    small = apply_plan_(model, plan_for(model, conv=choice("svd", 2), fc=choice("svd", 2)))
    conv, fc = small.get_submodule("conv"), small.get_submodule("fc")
    assert conv.training
    assert all(m.training for m in conv.modules())
    assert not fc.training
    assert not any(p.requires_grad for p in fc.parameters())
    assert all(p.requires_grad for p in conv.parameters())
    small(X)
    assert seen == ["before", "after"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_data_type_is_kept(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    small = apply_plan_(model, plan_for(model, conv=choice("cp", 4), fc=choice("svd", 2)))
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(X.to(dtype)).dtype == dtype


def test_the_memory_format_is_kept() -> None:
    model = network().to(memory_format=torch.channels_last)
    small = apply_plan_(model, plan_for(model, conv=choice("tucker", 4, 2), fc=choice("svd", 2)))
    for parameter in small.get_submodule("conv").parameters():
        assert parameter.ndim == 1 or parameter.is_contiguous(memory_format=torch.channels_last)
    plain = apply_plan_(network(), plan_for(network(), conv=choice("tucker", 4, 2)))
    core = plain.get_parameter("conv.core.weight")
    assert core.is_contiguous()
    assert not core.is_contiguous(memory_format=torch.channels_last)


def test_factored_layers_look_like_the_layers_they_replace() -> None:
    model = network()
    dense = copy.deepcopy(model)
    small: Any = apply_plan_(model, plan_for(model, conv=choice("tucker", 8, 4), fc=choice("svd", 6)))
    conv = small.conv
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(conv, name) == getattr(dense.get_submodule("conv"), name), name
    assert (small.fc.in_features, small.fc.out_features) == (8, 6)
    torch.testing.assert_close(conv.weight, layer_weight(dense, "conv"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.fc.bias, dense.get_submodule("fc").bias)
    assert "Linear 8->6" in repr(small.fc)
    assert "svd" in repr(small.fc)
    assert conv.device == torch.device("cpu")


@pytest.mark.parametrize(
    "choices",
    [{"conv": choice("tt", 2, 3, 4), "fc": choice("svd", 3)}, {"conv": choice("cp", 5), "fc": choice("ttm", 3)}],
)
def test_strip_leaves_plain_torch_modules(choices: dict[str, Choice]) -> None:
    small = apply_plan_(network(), plan_for(network(), **choices))
    plain = strip(small)
    assert torch.equal(plain(X), small(X))
    assert not any(type(m).__module__.startswith("rankfold") for m in plain.modules())
    assert not isinstance(plain.get_submodule("conv"), Factored)
    assert isinstance(small.get_submodule("conv"), Factored), "strip changed its input"
    tensors = [torch.equal(a, b) for a, b in zip(plain.parameters(), small.parameters(), strict=True)]
    assert all(tensors)
    assert not any(a is b for a, b in zip(plain.parameters(), small.parameters(), strict=True))
    plain.train()(X).sum().backward()


def test_a_model_remembers_its_plan() -> None:
    plan = plan_for(network(), conv=choice("svd", 2))
    small = apply_plan_(network(), plan)
    assert plan_of(small) is plan
    read = plan_of(nn.Sequential(small))
    assert read.layers == {"0.conv": choice("svd", 2)}
    assert plan_of(copy.deepcopy(small)).layers == plan.layers


def test_the_global_generator_is_left_alone() -> None:
    model = network()
    state = torch.random.get_rng_state()
    apply_plan_(model, plan_for(model, conv=choice("cp", 4), fc=choice("ttm", 2)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_with_computed_tensors_is_copied_without_their_graph() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's: the old weight norm is what users still have
        layer = nn.utils.weight_norm(nn.Linear(6, 4))
    assert layer.weight.grad_fn is not None
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    again = copy_model(layer)
    assert again.weight.grad_fn is None
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x), layer(x))
    assert layer.weight.grad_fn is not None


def test_the_weight_is_read_in_the_factors_own_precision() -> None:
    model = network()
    small = apply_plan_(model, plan_for(model, conv=choice("tucker", 4, 3), fc=choice("svd", 3)))
    for name in ("conv", "fc"):
        layer: Any = small.get_submodule(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer.weight, layer.weight.float())
            inside = layer.weight
        assert torch.equal(inside, layer.weight)


def test_hooks_survive_stripping_and_separated_attentions() -> None:
    model = network()
    small = apply_plan_(model, plan_for(model, conv=choice("svd", 2), fc=choice("ttm", 2)))
    seen: list[str] = []
    for name in ("conv", "fc"):
        small.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    strip(small)(X)
    assert seen == ["conv", "fc"]

    holder = nn.Sequential(OrderedDict(attention=nn.MultiheadAttention(16, 2)))
    attention: Any = holder.attention
    attention.note = "mine"
    attention.register_forward_pre_hook(lambda *_: seen.append("attention"))
    apply_plan_(holder, Plan(layers={"attention.out_proj": choice("svd", 4)}))
    assert isinstance(holder.attention, SeparatedAttention)
    holder.attention(*[torch.randn(3, 1, 16)] * 3)
    assert seen[2:] == ["attention"]
    assert holder.attention.note == "mine"


class Reshaping(nn.Module):
    """Reads the width of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).view(-1, self.a.out_features))


@pytest.mark.parametrize("choice", [Choice(method="svd", ranks=(6,)), Choice(method="ttm", ranks=(6,))])
def test_stripped_layers_keep_the_widths_that_code_reads(choice: Choice) -> None:
    small, x = apply_plan_(Reshaping(), Plan(layers={"a": choice})), torch.randn(2, 24)
    plain = pickle.loads(pickle.dumps(strip(small)))
    assert torch.equal(plain(x), small(x))
    assert plain.a.in_features == 24


@pytest.mark.parametrize("method", ["svd", "ttm"])
def test_a_bias_can_be_removed(method: str) -> None:
    small: Any = apply_plan_(nn.Sequential(nn.Linear(24, 32)), Plan(layers={"0": Choice(method=method, ranks=(6,))}))
    x, bias = torch.randn(2, 24), small[0].bias.detach()
    before = small(x)
    small[0].bias = None
    assert torch.allclose(small(x) + bias, before, atol=1e-6)
