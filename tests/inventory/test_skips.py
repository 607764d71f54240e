"""Layers that cannot be compressed say why; those that can but are unusual carry a note."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import ModelError
from rankfold.inventory import inspect, layer_weight, static_inventory


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * 2, self.bias)


class OnlyANewName(nn.Conv2d):
    """A subclass that computes what its base does."""

    def extra(self) -> int:
        return 1


def replaced_forward() -> nn.Module:
    conv = nn.Conv2d(2, 4, 3)
    conv.forward = lambda x: x.sum((1, 2, 3), keepdim=True)
    return conv


IMAGE = (1, 2, 6, 6)
SKIPPED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "depthwise": (nn.Conv2d(2, 4, 3, groups=2), torch.zeros(IMAGE), "depthwise convolution"),
    "depthwise_t": (nn.ConvTranspose2d(2, 4, 3, groups=2), torch.zeros(IMAGE), "depthwise"),
    "forward": (OwnForward(2, 4, 3), torch.zeros(IMAGE), "OwnForward has its own forward"),
    "conv_forward": (OwnConvForward(2, 4, 3), torch.zeros(IMAGE), "OwnConvForward has its own"),
    "linear": (OwnLinear(2, 4), torch.zeros(1, 2), "OwnLinear has its own forward"),
    "instance": (replaced_forward(), torch.zeros(IMAGE), "its forward was replaced"),
    "complex": (
        nn.Linear(2, 4, dtype=torch.complex64),
        torch.zeros(1, 2, dtype=torch.complex64),
        "its weight has dtype complex64",
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_with_the_reason(name: str) -> None:
    module, x, reason = SKIPPED[name]
    (layer,) = inspect(module, x).layers
    assert layer.skip is not None
    assert layer.skip.startswith(reason)
    assert static_inventory(module)[0].skip == layer.skip
    assert layer_weight(module, "").shape == layer.weight_shape


@pytest.mark.parametrize(
    "module",
    [OnlyANewName(2, 4, 3), nn.Conv2d(2, 4, 3, groups=1), nn.Conv2d(1, 4, 3)],
)
def test_what_looks_unusual_but_is_not_is_compressible(module: nn.Conv2d) -> None:
    (layer,) = inspect(module, torch.zeros(1, module.in_channels, 6, 6)).layers
    assert layer.skip is None
    assert layer.type_name == type(module).__name__


def test_integer_weights_are_skipped() -> None:
    linear = nn.Linear(2, 4, bias=False)
    linear.weight = nn.Parameter(torch.ones(4, 2, dtype=torch.int64), requires_grad=False)
    (layer,) = inspect(linear, torch.ones(1, 2, dtype=torch.int64)).layers
    assert layer.skip == "its weight has dtype int64"
    assert inspect(linear, torch.ones(1, 2, dtype=torch.int64)).total.weight_bytes == 64


class Wrapped(torch.Tensor):
    """A tensor subclass, as quantizers and sharding use them."""


def test_tensor_subclasses_are_skipped() -> None:
    linear = nn.Linear(2, 4)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Wrapped))
    (layer,) = static_inventory(linear)
    assert layer.skip is not None
    assert "Wrapped, not a plain tensor" in layer.skip


def test_a_frozen_buffer_is_no_parameter() -> None:
    linear = nn.Linear(2, 4)
    weight = linear.weight.detach()
    del linear.weight
    linear.register_buffer("weight", weight)
    (layer,) = inspect(linear, torch.zeros(1, 2)).layers
    assert layer.skip is not None
    assert layer.skip.startswith("its weight is not a parameter")


class Upsample(nn.Module):
    def __init__(self, by: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 3, stride=2)
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        size = [2 * n + 2 for n in x.shape[2:]]
        if self.by == "position":
            return self.up(x, size)
        if self.by == "keyword":
            return self.up(x, output_size=size)
        return self.up(x)


@pytest.mark.parametrize("by", ["position", "keyword", "nothing"])
def test_output_size_is_skipped(by: str) -> None:
    (layer,) = inspect(Upsample(by), torch.zeros(1, 2, 5, 5)).layers
    assert layer.calls[0].out_size == ((11, 11) if by == "nothing" else (12, 12))
    assert (layer.skip is None) == (by == "nothing")
    assert by == "nothing" or "output_size" in str(layer.skip)


class Uses(nn.Module):
    """Uses a layer's weight in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        fc, how = self.fc, self.how
        if how == "called":
            x = fc(x)
        elif how == "both":
            x = functional.linear(fc(x), fc.weight.t())
        elif how == "functional":
            x = functional.linear(x, fc.weight, fc.bias)
        elif how == "view":
            x = x @ fc.weight.t()[:, :2].repeat(1, 2)
        elif how == "cast":
            x = (x.double() @ fc.weight.detach().double()).float()
        elif how == "forward":
            x = fc.forward(x)
        elif how == "shape":
            x = x * fc.weight.shape[0] + fc.bias
        return self.last(x)


@pytest.mark.parametrize(
    ("how", "skipped", "note"),
    [
        ("called", False, None),
        ("both", False, "its weight is also used outside the layer"),
        ("functional", True, None),
        ("view", True, None),
        ("cast", True, None),
        ("forward", True, None),
        ("shape", False, "not called on the example input; factored by its weight alone"),
        ("nothing", False, "not called on the example input; factored by its weight alone"),
    ],
)
def test_use_of_the_weight(how: str, skipped: bool, note: str | None) -> None:
    layer = inspect(Uses(how), torch.randn(3, 4)).layer("fc")
    assert (layer.calls != ()) == (how in ("called", "both"))
    reason = "its weight is used without calling the layer (fused or functional code)"
    assert layer.skip == (reason if skipped else None)
    assert (layer.note or "").startswith(note or "")
    assert (layer.note is None) == (note is None)


def test_two_views_of_one_memory_are_told_apart() -> None:
    """Flat parameters: one memory holds many weights, and only one of them is used."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.randn(32)
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.a.weight = nn.Parameter(flat[:16].view(4, 4))
            self.b.weight = nn.Parameter(flat[16:].view(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.b.weight)

    inventory = inspect(Flat(), torch.randn(1, 4))
    assert [layer.skip is None for layer in inventory] == [True, False]
    assert inventory.total.params == 32


def lazy_net() -> nn.Sequential:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))


def test_lazy_modules_are_listed_and_left_alone() -> None:
    net = lazy_net()
    inventory = inspect(net, torch.randn(1, 3, 5, 5))
    assert [layer.weight_shape for layer in inventory] == [(4, 3, 3, 3), (2, 36)]
    assert all(str(layer.skip).startswith("lazy module") for layer in inventory)
    assert inventory.total.params == 4 * 27 + 4 + 8 + 2 * 36 + 2
    assert isinstance(net[0], nn.LazyConv2d)
    assert all(isinstance(net[i].weight, nn.UninitializedParameter) for i in (0, 1, 3))
    assert all(str(layer.skip).startswith("lazy module") for layer in static_inventory(net))


def test_lazy_modules_that_have_run_are_layers() -> None:
    net = lazy_net()
    net(torch.randn(2, 3, 5, 5))
    assert all(layer.skip is None for layer in inspect(net, torch.randn(1, 3, 5, 5)))


def test_a_copy_of_the_model_reads_the_same() -> None:
    net: Any = Uses("both")
    x = torch.randn(3, 4)
    assert inspect(net, x) == inspect(copy.deepcopy(net), x)


def test_quantized_layers_are_listed() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no fbgemm kernels for quantized layers")
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its quantization will move
        net[0] = torch.ao.nn.quantized.dynamic.Linear(4, 4)
        inventory = inspect(net, torch.zeros(1, 4))
    assert [layer.name for layer in inventory] == ["1"]
    assert [(o.name, o.params, o.reason) for o in inventory.others] == [("0", 16, "quantized")]


def test_torchscript_inside_a_model_is_listed() -> None:
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # torch.jit is, which of the two depends on Python
            warnings.simplefilter("ignore", category)
        script = torch.jit.script(nn.Linear(4, 4))
    net = nn.Sequential(script, nn.Linear(4, 2))
    inventory = inspect(net, torch.zeros(1, 4))
    assert [layer.name for layer in inventory] == ["1"]
    assert [(o.name, o.params, o.reason) for o in inventory.others] == [("0", 20, "TorchScript module")]
    with pytest.raises(ModelError, match="TorchScript"):
        inspect(script, torch.zeros(1, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_example_goes_where_the_model_is() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).cuda()
    state = torch.cuda.get_rng_state()
    inventory = inspect(net, (torch.zeros(3, 4),))
    assert inventory.layer("0").calls[0].batch == 3
    assert layer_weight(net, "0").is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
