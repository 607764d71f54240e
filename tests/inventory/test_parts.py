"""The costs of parts of a model: counted on the modules, by an independent counter, and complete together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rankfold as rf
from rankfold.errors import NoMatchingLayer
from rankfold.inventory import fused_attention_off
from rankfold.records import Cost


class Encoder(nn.Module):
    """Has a parameter and a matrix product of its own, next to its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        x = self.norm(x + self.attention(x, x, x)[0])
        return x + torch.matmul(x, x.mT).softmax(-1) @ self.down(self.up(x).relu())


class Network(nn.Module):
    """An embedding whose weight the head shares, an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.encoder = Encoder()
        self.decoder = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.BatchNorm1d(5))
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(self.embed(ids))))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


X = torch.arange(10).view(2, 5)


def stored_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("part", ["encoder", "encoder.attention", "encoder.down", "decoder", "decoder.0", "embed"])
def test_a_part_costs_what_its_module_costs(part: str) -> None:
    net = network()
    with torch.no_grad(), fused_attention_off(), FlopCounterMode(display=False) as counter:
        net(X)
    found = rf.inspect(net, X).part(part).total
    module = net.get_submodule(part)
    assert found.params == sum(p.numel() for p in module.parameters())
    assert found.weight_bytes == stored_bytes(module)
    assert 2 * found.macs == sum(counter.get_flop_counts().get(f"Network.{part}", {}).values())
    assert rf.inspect(net, X).part(f"{part}.*").total == found


def test_parts_add_up_to_the_model() -> None:
    inventory = rf.inspect(network(), X)
    parts = [inventory.part(name).total for name in ("embed", "encoder", "decoder", "head")]
    together = sum(parts, Cost())
    shared = 30 * 16  # the embedding is the head's weight, and counts in both
    assert together.params == inventory.total.params + shared
    assert together.macs == inventory.total.macs
    assert together.weight_bytes == inventory.total.weight_bytes + 4 * shared
    assert inventory.part("*").total == inventory.total
    assert inventory.part("*").outside == inventory.outside


def test_projections_of_an_attention_are_parts_of_it() -> None:
    inventory = rf.inspect(network(), X)
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    parts = [inventory.part(f"*.{name}").total for name in names]
    assert [part.params for part in parts] == [16 * 17] * 4
    assert [part.macs for part in parts] == [10 * 16 * 16] * 4
    whole = inventory.part("encoder.attention").total
    assert sum(part.params for part in parts) == whole.params
    assert sum(part.macs for part in parts) < whole.macs  # the scores are computed in none of them


def test_a_part_has_the_layers_and_modules_inside() -> None:
    inventory = rf.inspect(network(), X)
    part = inventory.part("encoder.*")
    assert [layer.name for layer in part] == [layer.name for layer in inventory if layer.name.startswith("encoder.")]
    assert {other.name for other in part.others} == {"encoder", "encoder.norm"}
    assert inventory.part("decoder.[02]").total.params == 17 * 24 + 25 * 16
    assert part.part("*.up").total.params == 17 * 40


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("encodr.*", "Close matches: 'encoder'"),
        ("xyz", "Modules: 'encoder', 'decoder', 'embed', 'head'"),
        ("encoder.*.fc", "'encoder"),
    ],
)
def test_a_part_that_matches_nothing_names_what_there_is(pattern: str, hint: str) -> None:
    with pytest.raises(NoMatchingLayer) as caught:
        rf.inspect(network(), X).part(pattern)
    assert str(caught.value).startswith(f"part {pattern!r} matches no module that has parameters or MACs.")
    assert hint in str(caught.value)


def test_tied_layers_count_in_the_parts_of_all_of_them() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    inventory = rf.inspect(net, torch.zeros(3, 8))
    assert [inventory.part(name).total.params for name in ("0", "2", "*")] == [72, 72, 80]
    assert inventory.part("0").total.macs == inventory.part("2").total.macs == inventory.total.macs == 2 * 3 * 64


def test_a_call_that_fails_inside_the_model_does_not_move_costs() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    class Caught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Failing(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.first(x)
            except ValueError:
                x = x @ x.mT @ x
            return self.second(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.caught, self.last = Caught(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.caught(x))
            return y @ y.mT

    inventory = rf.inspect(Outer(), torch.zeros(3, 4))
    assert inventory.part("caught").total.macs == 2 * 36 + 48
    assert inventory.total.macs == 2 * 36 + 48 + 24 + 18
