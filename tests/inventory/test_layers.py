"""Every kind of layer: its record, its calls, and its cost against torch's own counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankfold.errors import NoMatchingLayer
from rankfold.inventory import inspect
from rankfold.records import Call, Cost, LayerInfo

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 5, stride=2, padding=1, dilation=2), (2, 4, 19)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0)), (2, 4, 9, 11)),
    "conv2d_same": (nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular"), (1, 4, 8, 8)),
    "conv2d_grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (3, 4, 7, 7)),
    "conv2d_unbatched": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "conv3d": (nn.Conv3d(2, 4, (1, 2, 3)), (1, 2, 4, 5, 6)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, padding=1, bias=False), (1, 2, 4, 4, 4)),
    "transposed_unbatched": (nn.ConvTranspose2d(4, 6, 3), (4, 5, 6)),
    "linear": (nn.Linear(5, 3), (7, 5)),
    "linear_many_dims": (nn.Linear(5, 3, bias=False), (2, 3, 4, 5)),
    "linear_double": (nn.Linear(5, 3, dtype=torch.float64), (7, 5)),
    "conv_half": (nn.Conv2d(2, 3, 3, dtype=torch.bfloat16), (1, 2, 5, 5)),
}


def flops(model: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(x)
    return counter.get_total_flops(), output


@pytest.mark.parametrize("name", LAYERS)
def test_a_single_layer_costs_what_torch_counts(name: str) -> None:
    module, size = LAYERS[name]
    x = torch.randn(size, dtype=next(module.parameters()).dtype)
    inventory = inspect(module, x)
    counted, output = flops(module, x)
    (layer,) = inventory.layers
    assert layer.name == ""
    assert layer.skip is None
    assert layer.note is None
    assert layer.weight_shape == tuple(module.weight.shape)
    cost = inventory.costs[""]
    assert cost == Cost(
        params=sum(p.numel() for p in module.parameters()),
        macs=counted // 2,
        fm=output.numel(),
        weight_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
    )
    assert inventory.total == cost
    assert inventory.coverage == (1.0, 1.0)


def test_a_vector_is_a_batch_of_one() -> None:
    inventory = inspect(nn.Linear(5, 3), torch.randn(5))
    assert inventory.layer("").calls == (Call(batch=1),)
    assert inventory.total.macs == 15  # torch's counter knows no matrix-vector product


def test_the_record_holds_every_setting() -> None:
    conv = nn.ConvTranspose2d(
        4, 6, (3, 5), stride=(2, 3), padding=(1, 2), output_padding=(1, 0), groups=2, dilation=(1, 2)
    )
    assert inspect(nn.Sequential(conv), torch.randn(1, 4, 5, 6)).layers == (
        LayerInfo(
            name="0",
            kind="conv",
            in_channels=4,
            out_channels=6,
            kernel=(3, 5),
            stride=(2, 3),
            padding=(1, 2),
            dilation=(1, 2),
            output_padding=(1, 0),
            groups=2,
            transposed=True,
            bias=True,
            dtype="float32",
            type_name="ConvTranspose2d",
            calls=(Call(batch=1, in_size=(5, 6), out_size=(10, 20)),),
        ),
    )
    plain = inspect(nn.Conv2d(2, 3, 4, padding="same", padding_mode="reflect"), torch.randn(1, 2, 8, 8))
    assert (plain.layers[0].padding, plain.layers[0].padding_mode) == ("same", "reflect")
    assert plain.layers[0].output_padding == ()


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(input=self.conv(self.conv(x)[:, :, ::2]))
        return self.fc(self.fc(x.mean((2, 3))))


def test_calls_of_equal_sizes_are_merged() -> None:
    inventory = inspect(Repeated(), torch.randn(3, 2, 8, 8))
    assert inventory.layer("conv").calls == (
        Call(batch=3, in_size=(8, 8), out_size=(8, 8)),
        Call(batch=3, in_size=(4, 8), out_size=(4, 8), count=2),
    )
    assert inventory.layer("fc").calls == (Call(batch=3, count=2),)
    assert inventory.costs["conv"].macs == 36 * 3 * (64 + 2 * 32)
    assert inventory.total.macs == sum(cost.macs for cost in inventory.costs.values())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(2, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.a(first) + self.b(second)


class ListInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, items: list[Tensor]) -> list[Tensor]:
        return [self.a(item) for item in items]


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (TwoInputs(), (torch.zeros(1, 3), torch.zeros(1, 2)), "(1x3 float32, 1x2 float32)"),
        (
            TwoInputs(),
            {"second": torch.zeros(1, 2), "first": torch.zeros(1, 3)},
            "{second: 1x2 float32, first: 1x3 float32}",
        ),
        (ListInput(), [torch.zeros(1, 3), torch.zeros(1, 3)], "[1x3 float32, 1x3 float32]"),
        (nn.Linear(3, 4), torch.zeros(1, 3), "1x3 float32"),
    ],
)
def test_inputs_of_every_form(model: nn.Module, example: Any, words: str) -> None:
    inventory = inspect(model, example)
    assert all(layer.calls for layer in inventory)
    assert inventory.example == words


def test_others_say_what_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))
            self.embed = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.rnn = nn.LSTM(4, 4)
            self.act = nn.PReLU()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.rnn(self.norm(self.embed(x)))[0]))

    net = Net()
    inventory = inspect(net, torch.zeros(3, 2, dtype=torch.int64))
    assert [(o.name, o.type_name, o.params, o.reason) for o in inventory.others] == [
        ("", "Net", 7, "holds its own parameters"),
        ("embed", "Embedding", 20, "embedding"),
        ("norm", "LayerNorm", 8, "normalization"),
        ("rnn", "LSTM", 160, "recurrent"),
        ("act", "PReLU", 1, "activation"),
    ]
    assert inventory.total.params == sum(p.numel() for p in net.parameters())
    assert inventory.total.params == 10 + sum(o.params for o in inventory.others)


def test_bytes_count_persistent_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net.register_buffer("scratch", torch.zeros(1000), persistent=False)
    total = inspect(net, torch.zeros(1, 2)).total
    assert total.weight_bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())


def test_coverage_leaves_out_what_is_skipped() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, bias=False))
    inventory = inspect(net, torch.zeros(1, 4, 5, 5))
    assert inventory.coverage == (16 / 56, 16 / 52)
    assert inventory.summary().startswith("compressible: 29% of parameters, 31% of MACs (1 of 2")


def test_an_unknown_layer_offers_the_nearest() -> None:
    inventory = inspect(nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"head": nn.Linear(3, 1)})["head"]), torch.ones(2))
    assert inventory.layer("1").out_channels == 1
    for name, hint in (("11", r"Did you mean '1'\?"), ("fc", r"Its layers: '0', '1'\.")):
        with pytest.raises(NoMatchingLayer, match=f"^the model has no layer '{name}'\\. {hint}$"):
            inventory.layer(name)


class Alias(nn.Module):
    """A buffer has the memory of a parameter, and comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("first", self.a.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_a_parameter_that_a_buffer_shares_counts_as_parameter() -> None:
    net = Alias()
    inventory = inspect(net, torch.randn(2, 8))
    assert inventory.total.params == sum(p.numel() for p in net.parameters())
    assert inventory.coverage[0] == 1.0
