"""Shared modules and tied parameters are one decision, or are kept with the reason."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.inventory import inspect, layer_weight, static_inventory
from rankfold.records import Call


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)[0]))


X = torch.randn(2, 3, 4)


def test_untied_layers_are_three_decisions() -> None:
    inventory = inspect(Net(), X)
    assert [(layer.name, layer.ties, layer.aliases) for layer in inventory] == [
        ("a", (), ()),
        ("b", (), ()),
        ("c", (), ()),
    ]
    assert inventory.total.params == 60


def test_a_shared_module_has_aliases() -> None:
    net = Net()
    net.b = net.a
    inventory = inspect(net, X)
    assert [(layer.name, layer.aliases) for layer in inventory] == [("a", ("b",)), ("c", ())]
    assert inventory.layer("b").calls == (Call(batch=6), Call(batch=3))
    assert inventory.total.params == 40
    assert inventory.total.macs == 16 * (6 + 3 + 3)


def test_a_shared_block_gives_aliases_to_all_inside() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    inventory = inspect(nn.Sequential(block, nn.Sequential(block)), X)
    assert [(layer.name, layer.aliases) for layer in inventory] == [
        ("0.0", ("1.0.0",)),
        ("0.1.0", ("1.0.1.0",)),
    ]


def test_tied_parameters_are_one_decision() -> None:
    net = Net()
    net.c.weight = net.a.weight
    inventory = inspect(net, X)
    assert [(layer.name, layer.ties) for layer in inventory] == [("a", ("c",)), ("b", ())]
    assert inventory.layer("a").calls == (Call(batch=6), Call(batch=3))
    assert inventory.layer("a").skip is None
    assert inventory.total.params == 2 * 16 + 3 * 4
    assert inventory.costs["a"].params == 20
    assert static_inventory(net)[0].ties == ("c",)


def test_ties_name_every_path() -> None:
    net = Net()
    net.c.weight = net.b.weight = net.a.weight
    net.d = net.c
    assert [layer.ties for layer in inspect(net, X)] == [("b", "c", "d")]


def test_views_of_the_same_memory_are_tied() -> None:
    net = Net()
    net.c.weight = nn.Parameter(net.a.weight.detach())
    inventory = inspect(net, X)
    assert [layer.ties for layer in inventory] == [("c",), ()]
    assert inventory.total.params == 2 * 16 + 3 * 4


def test_equal_values_are_not_tied() -> None:
    net = Net()
    net.c.weight = nn.Parameter(net.a.weight.detach().clone())
    assert len(inspect(net, X).layers) == 3


def test_ties_with_other_settings_are_kept() -> None:
    net = Net()
    net.b = nn.Linear(4, 4, bias=False)
    net.b.weight = net.a.weight
    layers = inspect(net, X).layers
    assert [layer.skip for layer in layers] == [
        "its weight is shared with 'b', a layer with other settings",
        "its weight is shared with 'a', a layer with other settings",
        None,
    ]
    conv = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=2, dilation=2))
    conv[1].weight = conv[0].weight
    assert all(layer.skip and "other settings" in layer.skip for layer in inspect(conv, torch.zeros(1, 2, 8, 8)))


def test_a_transposed_tie_is_kept() -> None:
    net = Net()
    net.b.weight = nn.Parameter(net.a.weight.detach().t())
    layers = inspect(net, X).layers
    assert [bool(layer.skip) or layer.ties == () for layer in layers] == [True, True, True]
    assert layers[0].skip is not None
    assert layers[1].skip is not None


def test_a_tie_with_a_skipped_layer_is_kept() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    net = Net()
    net.b = Doubled(4, 4)
    net.b.weight = net.a.weight
    skips = [layer.skip for layer in inspect(net, X)]
    assert skips == [
        "its weight is shared with 'b', a layer with other settings",
        "Doubled has its own forward",
        None,
    ]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def test_a_tie_with_an_embedding_is_kept() -> None:
    inventory = inspect(Language(), torch.zeros(2, 3, dtype=torch.int64))
    assert inventory.layer("head").skip == "its weight is shared with 'embed' (Embedding)"
    assert inventory.layer("body").skip is None
    assert inventory.total.params == 36 + 20
    assert inventory.others == ()  # its parameters are the layer's


def test_a_parameter_that_the_model_holds_too_is_kept() -> None:
    net = Net()
    net.again = net.a.weight
    assert inspect(net, X).layer("a").skip == "its weight is shared with the model itself (Net)"


def test_a_parametrized_weight_that_is_shared_is_kept() -> None:
    net = Net()
    torch.nn.utils.parametrizations.weight_norm(net.a)
    torch.nn.utils.parametrizations.weight_norm(net.b)
    direction = net.a.get_parameter("parametrizations.weight.original1")
    net.b.get_submodule("parametrizations.weight").original1 = direction
    skips = [layer.skip for layer in inspect(net, X)]
    assert skips == [
        "its weight is shared with 'b' (Linear)",
        "its weight is shared with 'a' (Linear)",
        None,
    ]


def test_tied_attentions_are_one_decision_for_each_projection() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.MultiheadAttention(4, 2)
            self.b = nn.MultiheadAttention(4, 2)
            self.b.in_proj_weight = self.a.in_proj_weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x, x, x)[0]
            return self.b(x, x, x)[0]

    net = Twice()
    inventory = inspect(net, X)
    assert [(layer.name, layer.ties, layer.skip) for layer in inventory] == [
        ("a.q_proj", ("b.q_proj",), None),
        ("a.k_proj", ("b.k_proj",), None),
        ("a.v_proj", ("b.v_proj",), None),
        ("a.out_proj", (), None),
        ("b.out_proj", (), None),
    ]
    assert inventory.layer("a.k_proj").calls == (Call(batch=6, count=2),)
    assert inventory.total.params == 48 + 2 * 12 + 2 * 20
    assert torch.equal(layer_weight(net, "b.k_proj"), net.a.in_proj_weight[4:8])


def test_a_module_that_holds_its_parent_ends() -> None:
    net = Net()
    object.__getattribute__(net.a, "_modules")["parent"] = net
    assert len(static_inventory(net)) == 3
