"""Bytes at a deployment data type: by hand, and against what a built model stores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import methods
from rankfold.candidates import TableConfig, build_table
from rankfold.cost import Pricing, blueprint_cost, gauged_cost
from rankfold.errors import UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.records import Blueprint, Choice, LayerInfo, Plan, gauge_blueprint
from rankfold.records.deploy import DEPLOY_DTYPES
from rankfold.surgery.factored import build

X = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    """A convolution without bias, a normalization, a linear layer with one."""
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    return nn.Sequential(*layers).eval()


def layer_of(layer: nn.Module, *shape: int) -> LayerInfo:
    return inspect(layer, torch.zeros(shape)).layer("")


@pytest.mark.parametrize(
    ("deploy_dtype", "conv", "linear", "outside"),
    [
        # Weights 216 and 2,880, one bias of 10; 32 numbers of the normalization, and its counter of 64 bits.
        ("float32", 4 * 216, 4 * 2890, 4 * 32 + 8),
        ("float16", 2 * 216, 2 * 2890, 2 * 32 + 8),
        ("bfloat16", 2 * 216, 2 * 2890, 2 * 32 + 8),
        ("int8", 216 + 4 * 8, 2880 + 4 * 10 + 4 * 10, 4 * 32 + 8),
    ],
)
def test_a_model_by_hand(deploy_dtype: str, conv: int, linear: int, outside: int) -> None:
    found = inspect(network(), X)
    priced = Pricing.of(found, deploy_dtype=deploy_dtype).inventory
    assert priced.costs["0"].weight_bytes == conv
    assert priced.costs["4"].weight_bytes == linear
    assert priced.total.weight_bytes == conv + linear + outside
    assert priced.total.params == found.total.params
    assert priced.layers == found.layers


def test_its_own_type_changes_nothing() -> None:
    found = inspect(network(), X)
    assert Pricing.of(found, deploy_dtype=None).inventory is found
    assert Pricing.of(found, deploy_dtype="float32").inventory == found
    half = inspect(network().to(torch.bfloat16), X.to(torch.bfloat16))
    assert Pricing.of(half, deploy_dtype="bfloat16").inventory == half
    assert Pricing.of(half, deploy_dtype="float32").inventory.total.weight_bytes == found.total.weight_bytes


def test_what_belongs_to_no_layer() -> None:
    found = inspect(network(), X)
    assert found.outside == {"float32": 32, "int64": 1}


def test_a_tied_weight_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    found = inspect(Tied(), torch.zeros(1, 6))
    assert Pricing.of(found, deploy_dtype="float32").inventory == found
    assert Pricing.of(found, deploy_dtype="int8").inventory.total.weight_bytes == 36 + 4 * 6


def stored(module: nn.Module, weight: int, bias: int, scale: int) -> int:
    """Count a module's bytes on its own tensors: per stage, its weight's output channels have one scale each."""
    total = 0
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("weight"):
            owner = module.get_submodule(name.rpartition(".")[0])
            channels = owner.out_channels if isinstance(owner, nn.modules.conv._ConvNd) else owner.out_features
            total += weight * tensor.numel() + scale * int(channels)  # type: ignore[arg-type]
        elif name.endswith("bias"):
            total += bias * tensor.numel()
        else:  # a gauge's indices
            total += tensor.numel() * tensor.element_size()
    return total


def blueprints() -> list[tuple[LayerInfo, str, Blueprint]]:
    conv, linear = layer_of(nn.Conv2d(12, 16, 3, padding=1), 1, 12, 6, 6), layer_of(nn.Linear(24, 30), 1, 24)
    cases = [(conv, "tucker", (5, 4)), (conv, "cp", (6,)), (conv, "tt", (3, 5, 4)), (conv, "svd", (7,))]
    cases += [(linear, "svd", (6,)), (linear, "qr", (24,)), (linear, "ttm", (4,))]
    plain = [(layer, name, methods.get(name).blueprint(layer, ranks)) for layer, name, ranks in cases]
    return [*plain, *[(layer, name, gauge_blueprint(b)) for layer, name, b in plain]]


@pytest.mark.parametrize("case", range(14))
def test_blueprints_are_priced_as_they_are_built(case: int) -> None:
    layer, name, blueprint = blueprints()[case]
    module = build(blueprint, layer, Choice(method=name), dtype=torch.float32, device=torch.device("cpu"))
    sizes = {"float32": (4, 4, 0), "float16": (2, 2, 0), "bfloat16": (2, 2, 0), "int8": (1, 4, 4)}
    for deploy_dtype, (weight, bias, scale) in sizes.items():
        assert blueprint_cost(blueprint, layer, deploy_dtype=deploy_dtype).weight_bytes == stored(
            module, weight, bias, scale
        )
    assert blueprint_cost(blueprint, layer, deploy_dtype="float32") == blueprint_cost(blueprint, layer)


def test_a_gauge_may_not_pay_in_int8() -> None:
    """At rank 4 it saves 16 weights and takes an index of 4 bytes for each of 24 inputs; at rank 20, 400 weights."""
    layer = layer_of(nn.Linear(24, 30), 1, 24)
    plain = methods.get("svd").blueprint(layer, (4,))
    assert gauged_cost(plain, layer, deploy_dtype="int8")[1] is False
    assert gauged_cost(plain, layer)[1] is False
    middle = methods.get("svd").blueprint(layer, (7,))  # 49 weights
    assert gauged_cost(middle, layer, deploy_dtype="int8")[1] is False
    assert gauged_cost(middle, layer)[1] is True
    wide = methods.get("svd").blueprint(layer, (20,))
    assert gauged_cost(wide, layer, deploy_dtype="int8")[1] is True


def test_unknown_types_are_refused() -> None:
    found = inspect(network(), X)
    layer = found.layer("4")
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        Pricing.of(found, deploy_dtype="int4")
    with pytest.raises(UnknownNameError, match="float64"):
        blueprint_cost(methods.get("svd").blueprint(layer, (2,)), layer, deploy_dtype="float64")
    assert "int4" not in DEPLOY_DTYPES


@pytest.mark.parametrize("deploy_dtype", DEPLOY_DTYPES)
def test_a_table_counts_flash_at_the_deployment_type(deploy_dtype: str) -> None:
    net = network()
    found = Pricing.of(inspect(net, X), deploy_dtype=deploy_dtype)
    config = TableConfig(methods=("svd",))
    table = build_table(found, lambda name: layer_weight(net, name), config)
    (candidate,) = [c for c in table.rows["4"] if c.ranks == (3,)]
    small = rf.apply(net, Plan(layers={"4": Choice(method="svd", ranks=(3,))}), reconstruct="weights")
    assert (
        table.cost([candidate]).get("flash")
        == Pricing.of(inspect(small, X), deploy_dtype=deploy_dtype).inventory.total.weight_bytes
    )
    with pytest.raises(UnknownNameError):
        Pricing.of(found.inventory, deploy_dtype="int4")
